"""An evaluation from flags to output folder; :func:`main` is the program behind ``tools/evaluate.py``.

Perplexities run on the engine, at the layout of the training; all ranks take part. Then the other ranks leave, and rank
0 runs the benchmark tasks and writes.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.evaluation.arguments import evaluate_parser, evaluate_settings
from megatron_mixcpt.evaluation.benchmarks import TaskScore, prepare_tasks, run_tasks
from megatron_mixcpt.evaluation.model_source import ModelSource
from megatron_mixcpt.evaluation.perplexity import TextSet, measure_perplexity
from megatron_mixcpt.evaluation.results import (
    FILE_NAME,
    check_new,
    described_model,
    described_perplexity,
    provenance,
    table,
    write_results,
)
from megatron_mixcpt.evaluation.runner import ForwardRunner
from megatron_mixcpt.evaluation.settings import EvaluateSettings

ABOUT = """Evaluate a Hugging Face folder or a Megatron checkpoint: perplexity of texts, and benchmark tasks.

Writes DIR/results.json, which tools/report.py reads, and prints a table. See docs/evaluation.md."""


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, evaluate, write and print."""
    arguments = evaluate_parser(ABOUT).parse_args(sys.argv[1:] if argv is None else argv)
    settings = evaluate_settings(arguments)
    check_new(arguments.output)
    source = ModelSource.open(hf_model=arguments.hf_model, load=arguments.load, iteration=arguments.iteration)
    is_writer = int(os.environ.get("RANK", "0")) == 0
    prepared = prepare_tasks(settings.tasks) if settings.tasks.suites and is_writer else {}
    perplexities = {}
    if settings.text_sets:
        tp_size, pp_size = arguments.tensor_model_parallel_size, arguments.pipeline_model_parallel_size
        perplexities = measure_text_sets(source, settings, tp_size=tp_size, pp_size=pp_size)
        dist.destroy_process_group()
    if not is_writer:
        return
    scores = run_tasks(source, prepared, settings.tasks, settings.dtype) if prepared else {}
    results = {
        "model": described_model(source, arguments.hf_model or arguments.load, arguments.name),
        "perplexity": perplexities,
        "tasks": {suite: {name: score.figures for name, score in tasks.items()} for suite, tasks in scores.items()},
        "settings": settings.described(),
        **provenance(),
    }
    write_results(arguments.output, results, _samples(scores))
    print(f"{table(results)}\nresults: {arguments.output / FILE_NAME}", flush=True)


def _samples(scores: dict[str, dict[str, TaskScore]]) -> dict[str, list[dict[str, Any]]]:
    return {name: score.samples for tasks in scores.values() for name, score in tasks.items()}


def measure_text_sets(
    source: ModelSource, settings: EvaluateSettings, *, tp_size: int, pp_size: int
) -> dict[str, dict[str, Any]]:
    """The ``perplexity`` entry of ``results.json``; starts the ranks, and all of them call it."""
    tokenizer = source.tokenizer()
    runner = ForwardRunner.start(source, tp_size=tp_size, pp_size=pp_size, dtype=getattr(torch, settings.dtype))
    measured = {}
    for name, path in settings.text_sets.items():
        figures = measure_perplexity(runner, TextSet(name, path, settings.text_field, tokenizer), settings.windows)
        measured[name] = described_perplexity(figures, settings.windows)
    runner.close()
    return measured
