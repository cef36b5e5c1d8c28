"""What the user asks of an evaluation, as far as it decides what is measured; the number of ranks does not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_mixcpt.evaluation.perplexity import WindowSettings
from megatron_mixcpt.evaluation.suites import BenchmarkTask


@dataclass(frozen=True)
class TaskSettings:
    """Benchmark tasks to run."""

    suites: dict[str, tuple[BenchmarkTask, ...]]
    """The tasks by suite; none where ``--tasks`` is not given."""
    data: Path | None = None
    """The folder of their local files; None: lm-eval downloads them."""
    num_fewshot: int | None = None
    """Examples before each question; None: as each task has it."""
    limit: int | None = None
    """Ask only so many questions of each task (of each member of a group), the first ones."""
    batch_size: int = 8
    """Questions that run together."""
    apply_chat_template: bool = False
    """Ask in the tokenizer's chat template."""
    run_generated_code: bool = False
    """Whether programs that the model writes may be run."""

    def num_fewshot_of(self, task: BenchmarkTask) -> int:
        """How many examples a task is given."""
        return task.num_fewshot if self.num_fewshot is None or task.own_examples else self.num_fewshot

    def described(self) -> dict[str, Any]:
        """The settings by their flags."""
        return {
            "--tasks": [task.name for tasks in self.suites.values() for task in tasks],
            "--task-data": str(self.data) if self.data else None,
            "--num-fewshot": self.num_fewshot,
            "--task-limit": self.limit,
            "--task-batch-size": self.batch_size,
            "--apply-chat-template": self.apply_chat_template,
            "--run-generated-code": self.run_generated_code,
        }


@dataclass(frozen=True)
class MTBenchSettings:
    """How the questions of MT-Bench are answered, and by whom the answers are rated."""

    questions: Path
    judge_url: str
    judge_model: str
    judge_key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the key, if the judge wants one."""
    temperature: float = 0.3
    top_p: float = 0.9
    max_new_tokens: int = 1024
    """Of an answer, in tokens."""
    seed: int = 0

    def described(self) -> dict[str, Any]:
        """The settings by their flags."""
        return {
            "--mt-bench": str(self.questions),
            "--judge-url": self.judge_url,
            "--judge-model": self.judge_model,
            "--mt-bench-temperature": self.temperature,
            "--mt-bench-top-p": self.top_p,
            "--mt-bench-max-new-tokens": self.max_new_tokens,
        }


@dataclass(frozen=True)
class EvaluateSettings:
    """A whole run."""

    windows: WindowSettings
    text_sets: dict[str, str] = field(default_factory=dict)
    """Name -> file, folder or glob, as given to ``--perplexity``."""
    text_field: str = "text"
    """The field of a record that holds its text."""
    dtype: str = "bfloat16"
    """Of weights and computation."""
    tasks: TaskSettings = field(default_factory=lambda: TaskSettings({}))
    mt_bench: MTBenchSettings | None = None

    def described(self) -> dict[str, Any]:
        """The settings by their flags, for ``results.json``."""
        return {
            "--perplexity": [f"{name}={path}" for name, path in self.text_sets.items()],
            "--text-field": self.text_field,
            "--sequence-length": self.windows.sequence_length,
            "--stride": self.windows.stride,
            "--batch-tokens": self.windows.batch_tokens,
            "--dtype": self.dtype,
            **self.tasks.described(),
            **(self.mt_bench.described() if self.mt_bench else {}),
        }
