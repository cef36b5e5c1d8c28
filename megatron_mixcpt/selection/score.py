"""Score instruction and preference samples by how well a model already speaks their format, in one forward pass.

Rows are taken in parts. Every rank encodes the same part, ahead of the model (``parts.py``); the model's ranks share
its batches (``inference/runner.py``); rank 0 keeps the part's lines (``score_files.py``). A run that was killed
continues after its last complete part, with the date of its first start where the chat template writes the date.
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from megatron_mixcpt.data.chat.encoding import NOTES, ChatEncoder, Refusal
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.reading.sources import find_files
from megatron_mixcpt.data.tokens.document_start import document_start_id
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.inference.runner import ForwardRunner
from megatron_mixcpt.jobs.work_folder import lock, start_or_resume
from megatron_mixcpt.selection.fas import figures, sequences_of
from megatron_mixcpt.selection.parts import PartEncoder
from megatron_mixcpt.selection.samples import CandidateSample, count_rows, rows_of_parts
from megatron_mixcpt.selection.score_files import ScoreFiles, count_lines, count_notes
from megatron_mixcpt.selection.scoring_progress import ScoringProgress
from megatron_mixcpt.selection.settings import ScoreSettings

DATE = "date in the chat template"
"""What plan.json calls it."""
NOT_FINITE = Refusal("not_finite", "a loss of the model is not a finite positive number")


def score_alignment(settings: ScoreSettings) -> None:
    """Score samples with a model and write the scores file; all ranks call it.

    The parts of a run that fails are kept for the next one.

    Raises:
        ConfigError: a run with other settings or input has written parts there, or the output exists.
        DataError: a file cannot be read, a record is bad and that is an error, or no sample can be scored.
        CheckpointError: the model or its tokenizer cannot be read.
    """
    files = ScoreFiles(settings.output)
    files.check_new()
    source = ModelSource.open(hf_model=settings.hf_model, load=settings.load)
    include = settings.reading.include_held_out_splits
    found = {kind: find_files(kind, chosen.paths, include) for kind, chosen in settings.kinds.items()}
    sources = [source for of_kind in found.values() for source in of_kind.sources]
    tokenizer = source.tokenizer()
    template = choose_template(tokenizer, settings.chat_template, files.planned(DATE))
    layout = settings.layout
    runner = ForwardRunner.start(
        source,
        tp_size=layout.tensor_model_parallel_size,
        pp_size=layout.pipeline_model_parallel_size,
        ep_size=layout.expert_model_parallel_size,
        dtype=getattr(torch, layout.dtype),
    )
    template = replace(template, now=runner.from_writer(template.now))
    encoder = ChatEncoder(tokenizer, template, settings.seq_length)
    parts = PartEncoder(settings, sources, encoder)
    progress = None
    with ExitStack() as held:
        if runner.is_writer:
            described = settings.described() | source.described() | {"chat template digest": template.digest}
            described |= {DATE: template.now} if template.uses_date else {}
            start_or_resume(files.work, described, [source.stamp() for source in sources], files.output)
            held.enter_context(lock(files.work))
            num_samples = count_rows(sources)
            num_done = rows_of_parts(files.finished(), num_samples)
            progress = held.enter_context(ScoringProgress(num_samples, num_done, runner.dp_size))
        seconds = _score_parts(settings, parts, runner, files, document_start_id(tokenizer), progress)
        if runner.is_writer:
            files.join(len(parts.sizes))
            left_out = [of_kind.describe_held_out(f"--{kind}") for kind, of_kind in found.items() if of_kind.held_out]
            print("\n".join([*left_out, _summary(files, parts, runner, seconds)]), flush=True)
    runner.close()


def _score_parts(
    settings: ScoreSettings,
    parts: PartEncoder,
    runner: ForwardRunner,
    files: ScoreFiles,
    start_id: int,
    progress: ScoringProgress | None,
) -> float:
    """Score the unfinished parts and keep their lines; returns the seconds that it took."""
    finished = runner.from_writer(files.finished() if runner.is_writer else None)
    started = time.monotonic()
    for number, samples in parts.parts(finished):
        scores, rejects = score_part(samples, runner, start_id, settings.layout.batch_tokens, progress)
        if runner.is_writer:
            files.write_part(number, scores, rejects)
    return time.monotonic() - started


def score_part(
    samples: list[CandidateSample],
    runner: ForwardRunner,
    start_id: int,
    batch_tokens: int,
    progress: ScoringProgress | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of a part: of the samples with a score, and of those without.

    ``start_id`` is what a response alone is conditioned on, see :func:`~.fas.sequences_of`.
    """
    sequences = [
        sequence
        for sample in samples
        if sample.encoded is not None
        for sequence in sequences_of(sample.encoded, start_id)
    ]
    if progress is not None:
        progress.start_part(len(samples), len(sequences))
    on_sequences = progress.add_sequences if progress is not None else None
    sums = iter(runner.sequence_log_probs(sequences, batch_tokens, on_sequences).tolist())
    if progress is not None:
        progress.end_part()
    scores, rejects = [], []
    for sample in samples:
        found = figures(sample.encoded, next(sums), next(sums)) if sample.encoded is not None else None
        if sample.encoded is not None and found is not None:
            notes = {"notes": list(sample.encoded.notes)} if sample.encoded.notes else {}
            scores.append({"id": sample.id, **sample.described(), **found, **notes, "record": sample.row})
        else:
            refusal = sample.refusal or NOT_FINITE
            rejects.append({**sample.described(), "reason": refusal.reason, "detail": refusal.detail})
    return scores, rejects


def _summary(files: ScoreFiles, parts: PartEncoder, runner: ForwardRunner, seconds: float) -> str:
    """How many samples have a score and why the others do not, for the terminal."""
    scored, rejected = count_lines(files.output, "kind"), count_lines(files.rejects, "kind", "reason")
    lines = [f"{kind}: {number:,} samples scored" for (kind,), number in scored.items()]
    lines += [f"{kind}: {number:,} {NOTES[note]}" for (kind, note), number in count_notes(files.output).most_common()]
    lines += [
        f"{kind}: {number:,} {note}" for kind, notes in parts.notes.items() for note, number in notes.most_common()
    ]
    lines += [f"{kind}: {number:,} not scored: {reason}" for (kind, reason), number in rejected.most_common()]
    padding = 1 - runner.num_tokens / max(runner.num_places, 1)
    speed = runner.num_tokens / max(seconds, 1e-9)
    lines.append(f"{runner.num_tokens:,} tokens, {speed:,.0f} tokens per second; padding {padding:.1%} of the batches")
    return "\n".join([*lines, f"scores: {files.output}; samples without a score, with the reason: {files.rejects}"])
