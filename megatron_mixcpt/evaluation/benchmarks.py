"""Benchmark tasks, asked and scored by lm-eval, of a model wherever it runs (``evaluation/models``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.evaluation.code_runner import check_isolation
from megatron_mixcpt.evaluation.settings import TaskSettings
from megatron_mixcpt.evaluation.suites import BenchmarkTask
from megatron_mixcpt.evaluation.task_data import load_task

if TYPE_CHECKING:  # lm-eval is an extra
    from megatron_mixcpt.evaluation.models.local_model import LocalModel
    from megatron_mixcpt.evaluation.models.served_model import ServedModel

BOOTSTRAP_ITERATIONS = 1000
"""Resamplings for standard errors of metrics without a formula."""


@dataclass(frozen=True)
class TaskScore:
    """What a model reached on a task, and its answers."""

    figures: dict[str, Any]
    """The task's entry of ``results.json``."""
    samples: list[dict[str, Any]]
    """A record for each question as lm-eval logs it: the prompt, what the model made of it, the metrics."""


def check_available(*, served: bool = False) -> None:
    """Raise ConfigError where lm-eval is not installed, or what it asks servers with, where the model is ``served``."""
    try:
        import lm_eval.models.huggingface  # noqa: F401

        if served:
            import aiohttp  # noqa: F401
            import requests  # noqa: F401
            import tenacity  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--tasks and --mt-bench need lm-eval ({error}): pip install 'megatron-mixcpt[evaluate]', or remove them"
        ) from error


def prepare_tasks(settings: TaskSettings) -> dict[str, list[tuple[BenchmarkTask, Any]]]:
    """The tasks by suite, with their data: everything that can fail before the model is read.

    Raises ConfigError or DataError.
    """
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


def scored_by_likelihood(prepared: Mapping[str, list[tuple[BenchmarkTask, Any]]]) -> str | None:
    """The first task that is scored by log-likelihoods of given answers and not by answers that the model writes."""
    for items in prepared.values():
        for task, loaded in items:
            leaves = loaded.get_all_tasks() if hasattr(loaded, "get_all_tasks") else [loaded]
            if any(leaf.OUTPUT_TYPE != "generate_until" for leaf in leaves):
                return task.name
    return None


def run_tasks(
    model: "LocalModel | ServedModel",
    prepared: Mapping[str, list[tuple[BenchmarkTask, Any]]],
    settings: TaskSettings,
) -> dict[str, dict[str, TaskScore]]:
    """Scores by suite and task. One process calls it."""
    from megatron_mixcpt.evaluation.models.progress import without_other_bars

    scores: dict[str, dict[str, TaskScore]] = {}
    for number, (suite, items) in enumerate(prepared.items(), start=1):
        scores[suite] = {}
        for task, loaded in items:
            model.progress.title(f"suite {number} of {len(prepared)}, {suite}/{task.name}")
            with without_other_bars():
                scores[suite][task.name] = _run(model, task, loaded, settings)
    return scores


def _run(model: "LocalModel | ServedModel", task: BenchmarkTask, loaded: Any, settings: TaskSettings) -> TaskScore:
    from lm_eval import simple_evaluate

    results = simple_evaluate(
        model=model,
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
