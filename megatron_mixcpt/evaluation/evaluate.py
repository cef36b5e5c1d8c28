"""An evaluation from settings to output folder; :func:`main` is the program behind ``tools/evaluate.py``.

Perplexities run on the engine, at the layout of the training. All ranks take part; rank 0 writes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.evaluation.arguments import evaluate_parser, evaluate_settings
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

ABOUT = """Evaluate a Hugging Face folder or a Megatron checkpoint: perplexity and bits per byte of texts.

Writes DIR/results.json, which tools/report.py reads, and prints a table. See docs/evaluation.md."""


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, evaluate, write and print."""
    arguments = evaluate_parser(ABOUT).parse_args(sys.argv[1:] if argv is None else argv)
    settings = evaluate_settings(arguments)
    check_new(arguments.output)
    folder = arguments.hf_model or arguments.load
    source = ModelSource.open(hf_model=arguments.hf_model, load=arguments.load, iteration=arguments.iteration)
    perplexities = measure_text_sets(
        source,
        settings,
        tp_size=arguments.tensor_model_parallel_size,
        pp_size=arguments.pipeline_model_parallel_size,
    )
    is_writer = dist.get_rank() == 0
    dist.destroy_process_group()
    if not is_writer:
        return
    results = {
        "model": described_model(source, folder, arguments.name),
        "perplexity": perplexities,
        "tasks": {},
        "settings": settings.described(),
        **provenance(),
    }
    finish(arguments.output, results)


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


def finish(output: Path, results: dict[str, Any]) -> None:
    """Write the output folder and print the table."""
    write_results(output, results, {})
    print(f"{table(results)}\nresults: {output / FILE_NAME}", flush=True)
