"""An evaluation from flags to output folder; :func:`main` is the program behind ``tools/evaluate.py``.

Perplexities run on the engine, at the layout of the training; all ranks take part. Then the other ranks leave, and rank
0 runs the benchmark tasks and MT-Bench, and writes.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.evaluation.arguments import evaluate_parser, evaluate_settings
from megatron_mixcpt.evaluation.benchmarks import (
    TaskScore,
    hugging_face_folder,
    load_for_generation,
    prepare_tasks,
    run_tasks,
)
from megatron_mixcpt.evaluation.judge import Judge
from megatron_mixcpt.evaluation.mt_bench import NAME as MT_BENCH
from megatron_mixcpt.evaluation.mt_bench import Question, read_questions, run_mt_bench
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
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.runner import ForwardRunner

ABOUT = """Evaluate a Hugging Face folder or a Megatron checkpoint: perplexity of texts, benchmark tasks, MT-Bench.

Writes DIR/results.json, which tools/report.py reads, and prints a table. See docs/evaluation.md."""


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, evaluate, write and print."""
    arguments = evaluate_parser(ABOUT).parse_args(sys.argv[1:] if argv is None else argv)
    settings = evaluate_settings(arguments)
    check_new(arguments.output)
    source = ModelSource.open(hf_model=arguments.hf_model, load=arguments.load, iteration=arguments.iteration)
    is_writer = int(os.environ.get("RANK", "0")) == 0
    generation = Generation(source, settings) if is_writer else None
    perplexities = {}
    if settings.text_sets:
        tp_size, pp_size = arguments.tensor_model_parallel_size, arguments.pipeline_model_parallel_size
        perplexities = measure_text_sets(source, settings, tp_size=tp_size, pp_size=pp_size)
        dist.destroy_process_group()
    if generation is None:
        return
    scores = generation.run()
    results = {
        "model": described_model(source, arguments.hf_model or arguments.load, arguments.name),
        "perplexity": perplexities,
        "tasks": {suite: {name: score.figures for name, score in tasks.items()} for suite, tasks in scores.items()},
        "settings": settings.described(),
        **provenance(),
    }
    samples = {name: score.samples for tasks in scores.values() for name, score in tasks.items()}
    write_results(arguments.output, results, samples)
    print(f"{table(results)}\nresults: {arguments.output / FILE_NAME}", flush=True)


class Generation:
    """What runs on the model as transformers reads it: benchmark tasks and MT-Bench. One process has it."""

    def __init__(self, source: ModelSource, settings: EvaluateSettings):
        """Read data and ask the judge: all that can fail before the model is read.

        Raises ConfigError, DataError or CheckpointError.
        """
        self._source = source
        self._settings = settings
        self._tasks = prepare_tasks(settings.tasks) if settings.tasks.suites else {}
        self._questions: list[Question] = []
        if settings.mt_bench is not None:
            key = os.environ.get(settings.mt_bench.judge_key_variable)
            self._judge = Judge(settings.mt_bench.judge_url, settings.mt_bench.judge_model, key)
            self._questions = read_questions(settings.mt_bench.questions)
            choose_template(source.tokenizer(), None)
            self._judge.ask("Reply with one word: ready.")

    def run(self) -> dict[str, dict[str, TaskScore]]:
        """Scores by suite and task; none, without a look at the model, where nothing is asked for.

        Raises ConfigError where the judge gives no answers, CheckpointError where the model cannot be exported.
        """
        scores: dict[str, dict[str, TaskScore]] = {}
        if not self._tasks and not self._questions:
            return scores
        with hugging_face_folder(self._source) as folder:
            model, tokenizer = load_for_generation(folder, getattr(torch, self._settings.dtype))
            if self._tasks:
                scores = run_tasks(model, tokenizer, self._tasks, self._settings.tasks)
            if self._settings.mt_bench is not None:
                score = run_mt_bench(model, tokenizer, self._questions, self._judge, self._settings.mt_bench)
                scores[MT_BENCH] = {MT_BENCH: score}
        return scores


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
