"""An evaluation from settings to output folder.

Perplexities run on the engine, at the layout of the training; all ranks take part. Benchmark tasks and MT-Bench are
asked by the first rank, which also writes: of the whole model on every rank where it has room there, of its own alone,
or of a server.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.benchmarks import (
    TaskScore,
    check_available,
    prepare_tasks,
    run_tasks,
    scored_by_likelihood,
)
from megatron_mixcpt.evaluation.judge import Judge
from megatron_mixcpt.evaluation.models.server import Server
from megatron_mixcpt.evaluation.mt_bench import NAME as MT_BENCH
from megatron_mixcpt.evaluation.mt_bench import Question, read_questions, run_mt_bench
from megatron_mixcpt.evaluation.perplexity import TextSet, measure_perplexity
from megatron_mixcpt.evaluation.results import (
    FILE_NAME,
    check_new,
    described_model,
    described_perplexity,
    described_server,
    provenance,
    table,
    write_results,
)
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.flags import described
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.runner import ForwardRunner

if TYPE_CHECKING:  # lm-eval is an extra, transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

    from megatron_mixcpt.evaluation.models.local_model import LocalModel
    from megatron_mixcpt.evaluation.models.served_model import ServedModel

OF_THE_DEVICE = ("--dtype", "--task-batch-size")
"""Settings that a server has its own of."""


def evaluate(settings: EvaluateSettings) -> None:
    """Evaluate one model and write the output folder; all ranks call it.

    Raises ConfigError, DataError or CheckpointError, see their messages.
    """
    check_new(settings.output)
    if settings.asks:
        check_available(served=settings.is_served)
    measured = evaluate_served(settings) if settings.is_served else evaluate_here(settings)
    if measured is None:
        return
    model, perplexities, scores = measured
    decided = described(settings)
    results = {
        "model": model,
        "perplexity": perplexities,
        "tasks": {suite: {name: score.figures for name, score in tasks.items()} for suite, tasks in scores.items()},
        "settings": {flag: decided[flag] for flag in decided if not (settings.is_served and flag in OF_THE_DEVICE)},
        **provenance(),
    }
    samples = {name: score.samples for tasks in scores.values() for name, score in tasks.items()}
    write_results(settings.output, results, samples)
    print(f"{table(results)}\nresults: {settings.output / FILE_NAME}", flush=True)


Evaluated = tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, dict[str, TaskScore]]]
"""The entries ``model`` and ``perplexity`` of ``results.json``, and scores by suite and task."""


def evaluate_here(settings: EvaluateSettings) -> Evaluated | None:
    """Measure a model on this machine's devices; all ranks call it, and the first gets the figures."""
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load, iteration=settings.iteration)
    is_first = int(os.environ.get("RANK", "0")) == 0
    questions = Questions(settings, source.tokenizer) if is_first else None
    perplexities = {}
    if settings.texts.perplexity:
        perplexities = measure_text_sets(source, settings)
        dist.destroy_process_group()
    scores: dict[str, dict[str, TaskScore]] = {}
    if settings.asks:
        with _model_here(source, settings) as model:
            if questions is not None and model is not None:
                scores = questions.ask(model)
    return (described_model(source, settings.folder, settings.name), perplexities, scores) if is_first else None


def evaluate_served(settings: EvaluateSettings) -> Evaluated:
    """Measure a model through its server, which is asked for whatever can fail before any question is sent."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"--base-url {settings.server.base_url}: one process asks a server; start it without torchrun, and choose "
            "how many questions it sends at the same time with --num-concurrent"
        )
    folder = settings.folder
    tokenizer = load_tokenizer(folder)
    server = Server.connect(settings.server, tokenizer)
    questions = Questions(settings, lambda: tokenizer)
    if task := scored_by_likelihood(questions.tasks):
        server.check_log_probs(task, tokenizer)
    from megatron_mixcpt.evaluation.models.served_model import ServedModel

    scores = questions.ask(ServedModel(server, folder, tokenizer))
    return described_server(settings.server, folder, settings.name), {}, scores


@contextmanager
def _model_here(source: ModelSource, settings: EvaluateSettings) -> Iterator["LocalModel | None"]:
    """The model in memory, on the first rank alone or on all; None on ranks that do not ask."""
    is_alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not is_alone and not settings.tasks.share_tasks and int(os.environ["RANK"]) > 0:
        yield None
        return
    from megatron_mixcpt.evaluation.models.local_model import local_model

    on_all_ranks = settings.tasks.share_tasks and not is_alone
    dtype = getattr(torch, settings.layout.dtype)
    with local_model(source, dtype, settings.tasks.task_batch_size, on_all_ranks=on_all_ranks) as model:
        yield model


class Questions:
    """Benchmark tasks and MT-Bench, with their data. One process has them."""

    def __init__(self, settings: EvaluateSettings, tokenizer: Callable[[], "PreTrainedTokenizerBase"]):
        """Read the data and ask the judge once, so that whatever can fail does so before the model is read.

        Raises ConfigError, DataError or CheckpointError.
        """
        self._settings = settings
        self.tasks = prepare_tasks(settings.tasks) if settings.tasks.tasks else {}
        self._questions: list[Question] = []
        asked = settings.mt_bench
        if asked.questions is not None:
            self._judge = Judge(asked.judge_url, asked.judge_model, os.environ.get(asked.judge_key_variable))
            self._questions = read_questions(asked.questions)
            choose_template(tokenizer(), None)
            self._judge.ask("Reply with one word: ready.")

    def ask(self, model: "LocalModel | ServedModel") -> dict[str, dict[str, TaskScore]]:
        """Scores by suite and task.

        Raises ConfigError where the judge or the server gives no answers.
        """
        scores = run_tasks(model, self.tasks, self._settings.tasks)
        if self._questions:
            score = run_mt_bench(model, self._questions, self._judge, self._settings.mt_bench)
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
