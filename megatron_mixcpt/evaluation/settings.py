"""Settings of ``tools/evaluate.py``; the field docstrings are the help texts (``flags.py``)."""

from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.server_settings import ServerSettings
from megatron_mixcpt.evaluation.suites import BenchmarkTask, choose_tasks, listing
from megatron_mixcpt.flags import setting
from megatron_mixcpt.inference.settings import LayoutSettings, ModelSettings
from megatron_mixcpt.named_paths import parse_named_paths


def _check_at_least(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{flag} {value}: must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class PerplexitySettings:
    """Perplexity and bits per byte of texts."""

    perplexity: tuple[str, ...] = setting(default=(), metavar="NAME=PATH")
    """Text sets: JSONL, plain text (.gz, .bz2, .zst too), Parquet, folders or globs of these."""
    text_field: str = setting(default=FieldNames.text, metavar="NAME")
    """The field of a record that holds its text."""
    bos: bool = True
    """Predict a document's first token from the BOS token, if the tokenizer puts one before a text, as training on
    such a model's mixture does; with --no-bos, and for other tokenizers, from the end of sequence."""
    sequence_length: int = 2048
    """Maximum number of tokens that the model reads at once."""
    stride: int | None = None
    """Number of tokens that each window after a document's first scores; a smaller stride gives more context.
    Default: the sequence length."""
    batch_tokens: int = 4096
    """Maximum number of tokens in a batch, padding included; affects speed and memory only."""

    def __post_init__(self) -> None:
        _check_at_least("--sequence-length", self.sequence_length, 1)
        _check_at_least("--batch-tokens", self.batch_tokens, 1)
        if not 1 <= self.tokens_per_window <= self.sequence_length:
            raise ConfigError(
                f"--stride {self.stride}: must be between 1 and --sequence-length ({self.sequence_length})"
            )
        parse_named_paths("--perplexity", self.perplexity)

    @property
    def tokens_per_window(self) -> int:
        """Number of tokens that every window after a document's first scores: the stride, given or not."""
        return self.sequence_length if self.stride is None else self.stride

    @property
    def text_sets(self) -> dict[str, str]:
        """Name -> file, folder or glob."""
        return parse_named_paths("--perplexity", self.perplexity)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Benchmark tasks, through lm-eval."""

    tasks: tuple[str, ...] = setting(default=(), metavar="SUITE|TASK")
    """Suites, or single tasks of them; see --list-suites."""
    list_suites: bool = setting(default=False, decides=False, action="version", version=listing())
    """List the suites and exit."""
    task_data: Path | None = setting(default=None, metavar="DIR")
    """Folder with the tasks' data as local files, which are read instead of downloading the data
    (docs/how-to/evaluate.md)."""
    num_fewshot: int | None = None
    """Number of examples before each question; tasks with fixed examples keep them. Default: as each task defines
    it."""
    task_limit: int | None = None
    """Ask only the first N questions of each task (of each member of a group). Default: all."""
    task_batch_size: int = 8
    """Number of questions that run together."""
    apply_chat_template: bool = False
    """Ask in the tokenizer's chat template, for aligned models."""
    share_tasks: bool = setting(default=True, decides=False)
    """Under torchrun, let every rank hold the whole model and answer its share of the questions, if the model fits on
    each device; otherwise, and with --no-share-tasks, the first rank answers alone."""
    run_generated_code: bool = False
    """Run the programs that the model writes for HumanEval and MBPP, isolated from the machine
    (docs/how-to/evaluate.md)."""

    def __post_init__(self) -> None:
        _check_at_least("--num-fewshot", self.num_fewshot, 0)
        _check_at_least("--task-limit", self.task_limit, 1)
        _check_at_least("--task-batch-size", self.task_batch_size, 1)
        if self.task_data is not None and not self.task_data.is_dir():
            raise ConfigError(f"--task-data {self.task_data}: no such folder; check the path")
        choose_tasks(self.tasks)

    @property
    def suites(self) -> dict[str, tuple[BenchmarkTask, ...]]:
        """The tasks to run, by suite."""
        return choose_tasks(self.tasks)

    def num_fewshot_of(self, task: BenchmarkTask) -> int:
        """How many examples a task is given."""
        return task.num_fewshot if self.num_fewshot is None or task.own_examples else self.num_fewshot


@dataclass(frozen=True, kw_only=True)
class MTBenchSettings:
    """MT-Bench, for aligned models."""

    questions: Path | None = setting(default=None, flag="--mt-bench", metavar="FILE")
    """MT-Bench's questions as JSONL with the fields question_id, category, turns and reference."""
    judge_url: str = setting(default="", metavar="URL")
    """OpenAI-compatible endpoint of the model that rates the answers, such as https://api.openai.com/v1."""
    judge_model: str = setting(default="", metavar="NAME")
    """Name of that model at the endpoint."""
    judge_key_variable: str = setting(default="OPENAI_API_KEY", flag="--judge-key", metavar="VARIABLE", decides=False)
    """Environment variable that holds the endpoint's key, if it requires one."""
    temperature: float = setting(default=0.3, flag="--mt-bench-temperature")
    """Sampling temperature of the answers."""
    top_p: float = setting(default=0.9, flag="--mt-bench-top-p")
    """Probability mass that the answers are sampled from."""
    max_new_tokens: int = setting(default=1024, flag="--mt-bench-max-new-tokens")
    """Maximum number of tokens in each answer."""
    seed: int = setting(default=0, is_flag=False)

    def __post_init__(self) -> None:
        if self.questions is None:
            return
        if not self.judge_url or not self.judge_model:
            raise ConfigError(f"--mt-bench {self.questions}: name the judge with --judge-url and --judge-model")
        if not self.judge_url.startswith(("http://", "https://")):
            raise ConfigError(f"--judge-url {self.judge_url}: expected an address that begins with http:// or https://")
        if self.temperature <= 0:
            raise ConfigError(f"--mt-bench-temperature {self.temperature}: must be greater than 0")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--mt-bench-top-p {self.top_p}: must be greater than 0 and at most 1")
        _check_at_least("--mt-bench-max-new-tokens", self.max_new_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(ModelSettings):
    """What to evaluate, and where to write."""

    iteration: int | None = setting(default=None, metavar="N", decides=False)
    """Iteration of --load. Default: the latest."""
    name: str | None = setting(default=None, metavar="NAME", decides=False)
    """What reports call the model. Default: the name of its folder."""
    output: Path = setting(metavar="DIR", decides=False)
    """Folder to write; must not exist."""
    texts: PerplexitySettings = setting(default_factory=PerplexitySettings)
    tasks: TaskSettings = setting(default_factory=TaskSettings)
    mt_bench: MTBenchSettings = setting(default_factory=MTBenchSettings)
    layout: LayoutSettings = setting(default_factory=LayoutSettings)
    server: ServerSettings = setting(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.texts.perplexity or self.tasks.tasks or self.mt_bench.questions):
            raise ConfigError("nothing to evaluate: give --perplexity NAME=PATH, --tasks or --mt-bench")
        if self.iteration is not None and self.load is None:
            raise ConfigError(f"--iteration {self.iteration} is not used with --hf-model; remove it, or use --load")
        if self.is_served:
            self._check_served()

    @property
    def asks(self) -> bool:
        """Whether there are questions, which perplexities are not."""
        return bool(self.tasks.tasks or self.mt_bench.questions)

    @property
    def is_served(self) -> bool:
        """Whether a server answers."""
        return bool(self.server.base_url)

    def _check_served(self) -> None:
        """Raise ConfigError where a flag is of a model in this process, and a server answers."""
        if self.load is not None:
            raise ConfigError(
                f"--load {self.load} is not used with --base-url: export it with tools/convert_to_hf.py, serve the "
                "folder, and give it as --hf-model"
            )
        if self.texts.perplexity:
            raise ConfigError(
                f"--perplexity {self.texts.perplexity[0]} is not measured through --base-url, whose windows and first "
                "tokens are the server's; run it without --base-url"
            )
        for flag, given, default in (
            ("--dtype", self.layout.dtype, LayoutSettings.dtype),
            ("--tensor-model-parallel-size", self.layout.tensor_model_parallel_size, 1),
            ("--pipeline-model-parallel-size", self.layout.pipeline_model_parallel_size, 1),
            ("--expert-model-parallel-size", self.layout.expert_model_parallel_size, 1),
            ("--task-batch-size", self.tasks.task_batch_size, TaskSettings.task_batch_size),
        ):
            if given != default:
                raise ConfigError(
                    f"{flag} {given} is not used with --base-url: it is the server's to choose; remove it"
                )
