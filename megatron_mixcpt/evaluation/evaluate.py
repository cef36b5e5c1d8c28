"""An evaluation from settings to output folder.

Perplexities run on the engine, at the layout of the training; all ranks take part. Then the other ranks leave, and rank
0 runs the benchmark tasks and MT-Bench, and writes.
"""

import os
from typing import Any

import torch
import torch.distributed as dist

from megatron_mixcpt.data.chat.templates import choose_template
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
from megatron_mixcpt.flags import described
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.runner import ForwardRunner


def evaluate(settings: EvaluateSettings) -> None:
    """Evaluate one model and write the output folder; all ranks call it.

    Raises ConfigError, DataError or CheckpointError, see their messages.
    """
    check_new(settings.output)
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load, iteration=settings.iteration)
    is_writer = int(os.environ.get("RANK", "0")) == 0
    generation = Generation(source, settings) if is_writer else None
    perplexities = {}
    if settings.texts.perplexity:
        perplexities = measure_text_sets(source, settings)
        dist.destroy_process_group()
    if generation is None:
        return
    scores = generation.run()
    results = {
        "model": described_model(source, settings.folder, settings.name),
        "perplexity": perplexities,
        "tasks": {suite: {name: score.figures for name, score in tasks.items()} for suite, tasks in scores.items()},
        "settings": described(settings),
        **provenance(),
    }
    samples = {name: score.samples for tasks in scores.values() for name, score in tasks.items()}
    write_results(settings.output, results, samples)
    print(f"{table(results)}\nresults: {settings.output / FILE_NAME}", flush=True)


class Generation:
    """What runs on the model as transformers reads it: benchmark tasks and MT-Bench. One process has it."""

    def __init__(self, source: ModelSource, settings: EvaluateSettings):
        """Read the data and ask the judge once, so that whatever can fail does so before the model is read.

        Raises ConfigError, DataError or CheckpointError.
        """
        self._source = source
        self._settings = settings
        self._tasks = prepare_tasks(settings.tasks) if settings.tasks.tasks else {}
        self._questions: list[Question] = []
        asked = settings.mt_bench
        if asked.questions is not None:
            self._judge = Judge(asked.judge_url, asked.judge_model, os.environ.get(asked.judge_key_variable))
            self._questions = read_questions(asked.questions)
            choose_template(source.tokenizer(), None)
            self._judge.ask("Reply with one word: ready.")

    def run(self) -> dict[str, dict[str, TaskScore]]:
        """Scores by suite and task; where nothing is asked for, none, and the model is not read.

        Raises ConfigError where the judge gives no answers, CheckpointError where the model cannot be exported.
        """
        scores: dict[str, dict[str, TaskScore]] = {}
        if not self._tasks and not self._questions:
            return scores
        with hugging_face_folder(self._source) as folder:
            model, tokenizer = load_for_generation(folder, getattr(torch, self._settings.layout.dtype))
            if self._tasks:
                scores = run_tasks(model, tokenizer, self._tasks, self._settings.tasks)
            if self._questions:
                score = run_mt_bench(model, tokenizer, self._questions, self._judge, self._settings.mt_bench)
                scores[MT_BENCH] = {MT_BENCH: score}
        return scores


def measure_text_sets(source: ModelSource, settings: EvaluateSettings) -> dict[str, dict[str, Any]]:
    """The ``perplexity`` entry of ``results.json``; starts the ranks, and all of them call it."""
    tokenizer, layout = source.tokenizer(), settings.layout
    runner = ForwardRunner.start(
        source,
        tp_size=layout.tensor_model_parallel_size,
        pp_size=layout.pipeline_model_parallel_size,
        ep_size=layout.expert_model_parallel_size,
        dtype=getattr(torch, layout.dtype),
    )
    measured = {}
    for name, path in settings.texts.text_sets.items():
        texts = TextSet(name, path, settings.texts.text_field, tokenizer, bos=settings.texts.bos)
        measured[name] = described_perplexity(measure_perplexity(runner, texts, settings.texts), settings.texts)
    runner.close()
    return measured
