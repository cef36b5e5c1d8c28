"""Score instruction and preference samples by how well a model already speaks their format, in one forward pass.

Rows are taken in parts. Every rank encodes the same part, ahead of the model; the model's ranks share its batches
(``inference/runner.py``); rank 0 keeps the part's lines (``score_files.py``). A run that was killed continues after
its last complete part.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from tqdm import tqdm

from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.record_maker import RecordMaker
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.runner import ForwardRunner
from megatron_mixcpt.jobs.progress import LOG_SECONDS
from megatron_mixcpt.jobs.work_folder import lock, start_or_resume
from megatron_mixcpt.selection.fas import figures, sequences_of
from megatron_mixcpt.selection.samples import PART_SAMPLES, CandidateSample, NumberedRow, make_sample, read_parts
from megatron_mixcpt.selection.score_files import ScoreFiles, count_lines
from megatron_mixcpt.selection.settings import ScoreSettings

NOT_FINITE = Refusal("not_finite", "a loss of the model is not a finite positive number")


class PartEncoder:
    """Reads the input in parts and encodes them; finished parts are skipped."""

    def __init__(self, settings: ScoreSettings, sources: list[Source], encoder: ChatEncoder):
        self._settings = settings
        self._sources = sources
        self._encoder = encoder
        self._makers = {kind: RecordMaker(kind, chosen, settings.rules) for kind, chosen in settings.kinds.items()}
        self.num_parts = 0
        """Number of parts in the input, known once :meth:`parts` has ended."""

    def parts(self, finished: set[int]) -> Iterator[tuple[int, list[CandidateSample]]]:
        """Number and samples of each unfinished part; the next part is encoded while the caller works on one."""
        unfinished = (part for part in enumerate(self._read()) if part[0] not in finished)
        with ThreadPoolExecutor(1) as worker:
            pending = None
            for number, rows in unfinished:
                ahead = worker.submit(self._encode, number, rows)
                if pending is not None:
                    yield pending.result()
                pending = ahead
            if pending is not None:
                yield pending.result()

    def _read(self) -> Iterator[list[NumberedRow]]:
        for rows in read_parts(self._sources, self._makers, self._settings):
            self.num_parts += 1
            yield rows

    def _encode(self, number: int, rows: list[NumberedRow]) -> tuple[int, list[CandidateSample]]:
        return number, [make_sample(item, self._makers[item.source.kind], self._encoder) for item in rows]


def score_alignment(settings: ScoreSettings) -> None:
    """Score samples with a model and write the scores file; all ranks call it.

    The parts of a run that fails are kept for the next one.

    Raises:
        ConfigError: a run with other settings or input has written parts there, or the output exists.
        DataError: a file cannot be read, or no sample can be scored.
        CheckpointError: the model or its tokenizer cannot be read.
    """
    files = ScoreFiles(settings.output)
    files.check_new()
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load)
    sources = [found for kind, chosen in settings.kinds.items() for found in find_sources(kind, list(chosen.paths))]
    tokenizer = source.tokenizer()
    template = choose_template(tokenizer, settings.chat_template)
    encoder = ChatEncoder(tokenizer, template, settings.seq_length)
    parts = PartEncoder(settings, sources, encoder)
    layout = settings.layout
    runner = ForwardRunner.start(
        source,
        tp_size=layout.tensor_model_parallel_size,
        pp_size=layout.pipeline_model_parallel_size,
        dtype=getattr(torch, layout.dtype),
    )
    with ExitStack() as held:
        if runner.is_writer:
            described = settings.described() | source.described() | {"chat template digest": template.digest}
            start_or_resume(files.work, described, [source.stamp() for source in sources], files.output)
            held.enter_context(lock(files.work))
        seconds = _score_parts(settings, parts, runner, files, encoder.eos_id)
        if runner.is_writer:
            files.join(parts.num_parts)
            print(_summary(files, runner, seconds), flush=True)
    runner.close()


def _score_parts(
    settings: ScoreSettings, parts: PartEncoder, runner: ForwardRunner, files: ScoreFiles, eos_id: int
) -> float:
    """Score the unfinished parts and keep their lines; returns the seconds that it took."""
    finished = runner.from_writer(files.finished() if runner.is_writer else None)
    started = time.monotonic()
    quiet = {"disable": not runner.is_writer, "mininterval": 0.5 if sys.stderr.isatty() else LOG_SECONDS}
    with tqdm(desc="score", unit=" sequences", unit_scale=True, **quiet) as progress:
        for number, samples in parts.parts(finished):
            scores, rejects = score_part(samples, runner, eos_id, settings.layout.batch_tokens, progress.update)
            if runner.is_writer:
                files.write_part(number, scores, rejects)
            speed = runner.num_tokens / (time.monotonic() - started)
            progress.set_postfix_str(
                f"{number + 1} parts of {PART_SAMPLES} samples done, {speed:,.0f} tokens/s", refresh=False
            )
    return time.monotonic() - started


def score_part(
    samples: list[CandidateSample],
    runner: ForwardRunner,
    eos_id: int,
    batch_tokens: int,
    on_sequences: Callable[[int], object] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of a part: of the samples with a score, and of those without."""
    sequences = [
        sequence
        for sample in samples
        if sample.encoded is not None
        for sequence in sequences_of(sample.encoded, eos_id)
    ]
    sums = iter(runner.sequence_log_probs(sequences, batch_tokens, on_sequences).tolist())
    scores, rejects = [], []
    for sample in samples:
        found = figures(sample.encoded, next(sums), next(sums)) if sample.encoded is not None else None
        if found is not None:
            scores.append({"id": sample.id, **sample.described(), **found, "record": sample.row})
        else:
            refusal = sample.refusal or NOT_FINITE
            rejects.append({**sample.described(), "reason": refusal.reason, "detail": refusal.detail})
    return scores, rejects


def _summary(files: ScoreFiles, runner: ForwardRunner, seconds: float) -> str:
    """How many samples have a score and why the others do not, for the terminal."""
    scored, rejected = count_lines(files.output, "kind"), count_lines(files.rejects, "kind", "reason")
    lines = [f"{kind}: {number:,} samples scored" for (kind,), number in scored.items()]
    lines += [f"{kind}: {number:,} not scored: {reason}" for (kind, reason), number in rejected.most_common()]
    padding = 1 - runner.num_tokens / max(runner.num_places, 1)
    speed = runner.num_tokens / max(seconds, 1e-9)
    lines.append(f"{runner.num_tokens:,} tokens, {speed:,.0f} tokens per second; padding {padding:.1%} of the batches")
    return "\n".join([*lines, f"scores: {files.output}; samples without a score, with the reason: {files.rejects}"])
