"""Benchmark tasks, run by lm-eval on the model as transformers reads it; a Megatron checkpoint is exported first.

Generation needs a cache of keys and values, which transformers has; the exported folder holds the same weights, lies in
a temporary place and is removed at the end. All of it happens in one process: transformers spreads a model over the
GPUs that this process sees.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from megatron_mixcpt.conversion.convert import convert_to_hf
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.evaluation.code_runner import check_isolation
from megatron_mixcpt.evaluation.settings import TaskSettings
from megatron_mixcpt.evaluation.suites import BenchmarkTask
from megatron_mixcpt.evaluation.task_data import load_task
from megatron_mixcpt.inference.model_source import ModelSource

if TYPE_CHECKING:  # lm-eval is an extra, transformers takes seconds to import
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP_ITERATIONS = 1000
"""Resamplings for standard errors of metrics without a formula."""


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on a task, and its answers."""

    figures: dict[str, Any]
    """The task's entry of ``results.json``."""
    samples: list[dict[str, Any]]
    """A record for each question as lm-eval logs it: the prompt, what the model made of it, the metrics."""


def check_available() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-eval ({error}): pip install 'megatron-mixcpt[evaluate]', or remove --tasks"
        ) from error


def prepare_tasks(settings: TaskSettings) -> dict[str, list[tuple[BenchmarkTask, Any]]]:
    """The tasks by suite, with their data: everything that can fail before the model is read.

    Raises ConfigError or DataError.
    """
    check_available()
    tasks = [task for chosen in settings.suites.values() for task in chosen]
    if code := [task.name for task in tasks if task.runs_code]:
        if not settings.run_generated_code:
            raise ConfigError(
                f"--tasks {code[0]} runs programs that the model writes; allow this with --run-generated-code"
            )
        check_isolation()
    return {
        suite: [(task, load_task(suite, task, settings.task_data, settings.num_fewshot_of(task))) for task in chosen]
        for suite, chosen in settings.suites.items()
    }


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prepared: Mapping[str, list[tuple[BenchmarkTask, Any]]],
    settings: TaskSettings,
) -> dict[str, dict[str, TaskScore]]:
    """Scores by suite and task. One process calls it, after the process group was destroyed."""
    runner = make_runner(model, tokenizer, settings)
    return {
        suite: {task.name: _run(runner, task, loaded, settings) for task, loaded in items}
        for suite, items in prepared.items()
    }


def make_runner(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", settings: TaskSettings) -> "HFLM":
    """What lm-eval asks. It encodes a prompt as the tokenizer does, BOS included, unless the prompt begins with BOS."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.task_batch_size)


@contextmanager
def hugging_face_folder(source: ModelSource) -> Iterator[Path]:
    """The model's folder for transformers: its own, or an export of the checkpoint, which is there inside the block."""
    if not source.is_megatron:
        yield source.weights
        return
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        exported = Path(folder) / "model"
        convert_to_hf(source.weights.parent, exported, iteration=source.iteration)
        yield exported


def load_for_generation(folder: Path, dtype: torch.dtype) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Model and tokenizer of a Hugging Face folder, by transformers, on the engine's device or spread over several."""
    import transformers

    several = torch.cuda.device_count() > 1
    plan = read_config(folder)
    if plan.quantization:
        raise ConfigError(
            f"{folder}: its weights are quantized ({plan.quantization}), and whether transformers computes with them "
            "or with bfloat16 depends on the device: convert and export it, and evaluate the export"
        )
    model_class = getattr(transformers, plan.architecture.name)
    model = model_class.from_pretrained(folder, dtype=dtype, device_map="auto" if several else None)
    if not several:
        model = model.to(torch.cuda.current_device())
    return model.eval(), load_tokenizer(folder)


def _run(runner: "HFLM", task: BenchmarkTask, loaded: Any, settings: TaskSettings) -> TaskScore:
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model=runner,
        tasks=[loaded],
        num_fewshot=settings.num_fewshot_of(task),
        limit=settings.task_limit,
        apply_chat_template=settings.apply_chat_template,
        bootstrap_iters=BOOTSTRAP_ITERATIONS,
        confirm_run_unsafe_code=settings.run_generated_code,
    )
    assert results is not None
    return TaskScore(_figures(task, results), [line for lines in results["samples"].values() for line in lines])


def _figures(task: BenchmarkTask, results: Mapping[str, Any]) -> dict[str, Any]:
    """A task's entry of ``results.json``, from lm-eval's results."""
    name, _, filter_name = task.metric.partition(",")
    found = results["results"][task.name]
    value, stderr = found[task.metric], found.get(f"{name}_stderr,{filter_name}")
    if not math.isfinite(value):
        raise CheckpointError(f"{task.name}: {task.metric_name} is {value}; the model's outputs are not finite")
    leaves = [leaf for leaf in results["samples"] if leaf in results["n-samples"]]
    return {
        "metric": task.metric_name,
        "value": float(value),
        "stderr": float(stderr) if isinstance(stderr, float) and math.isfinite(stderr) else None,
        "samples": sum(results["n-samples"][leaf]["effective"] for leaf in leaves),
        "num_fewshot": max(results["n-shot"][leaf] for leaf in leaves),
    }
