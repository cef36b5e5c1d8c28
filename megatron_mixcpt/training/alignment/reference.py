"""The DPO reference's log-probabilities, computed once before training and looked up in it.

They are computed some pairs at a time, and kept beside the encoded samples, in a folder whose name tells the model's
files: a restarted run does not compute them again, and a killed one goes on where it stopped.
"""

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_mixcpt.data.datasets.encoded_samples import Document
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.inference.batches import ScoredSequence
from megatron_mixcpt.inference.runner import ForwardRunner
from megatron_mixcpt.jobs.agreement import agreement
from megatron_mixcpt.jobs.progress import Progress
from megatron_mixcpt.jobs.whole_outputs import make_folder, open_whole
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.alignment.prepare import AlignmentRun

PART_PAIRS = 1024
"""Pairs that are computed and kept together, and that are lost where the run is killed."""


class ReferenceSums(NamedTuple):
    """The sum of each response's log-probabilities in the reference model, in nats, float32 [samples, 2]."""

    sums: Tensor

    def of(self, sample: Tensor, device: torch.device) -> Tensor:
        """For documents [b, n], chosen and rejected in turn, of these samples (-1: none, given 0): float32 [b, n]."""
        sides = torch.arange(sample.shape[1]) % 2
        sums = self.sums[sample.clamp(min=0), sides].masked_fill(sample < 0, 0.0)
        return sums.pin_memory().to(device, non_blocking=True)


def precompute_reference(run: AlignmentRun, groups: ProcessGroupCollection) -> ReferenceSums:
    """Run the model that training starts from over every pair, forward only, and let go of it. Every rank must call.

    Args:
        run: the run.
        groups: from ``engine.start_distributed``.
    """
    folder = run.cache.with_name(f"{run.cache.name}-reference-{_digest(run)}") if run.cache else None
    starts = range(0, len(run.samples), PART_PAIRS)
    with agreement() as ranks:
        kept = ranks.from_first(lambda: _read(folder, starts, len(run.samples)) if folder else {})
    if len(kept) < len(starts):
        kept |= _compute(run, [start for start in starts if start not in kept], folder)
    return ReferenceSums(torch.from_numpy(np.concatenate([kept[start] for start in starts])))


def _compute(run: AlignmentRun, starts: list[int], folder: Path | None) -> dict[int, np.ndarray]:
    """The sums of the parts that begin at ``starts``, each written by the first rank once it is known."""
    is_first, num_pairs = run.args.rank == 0, len(run.samples)
    parts = {start: range(start, min(start + PART_PAIRS, num_pairs)) for start in starts}
    num_left = sum(map(len, parts.values()))
    if is_first:
        say(f"computing the reference's log-probabilities of {num_left:,} pairs ...")
    runner = ForwardRunner(run.flags.source, dtype=run.args.params_dtype)
    batch_tokens = run.flags.shape.micro_batch_size * run.args.seq_length
    computed = {}
    with Progress(num_pairs, "reference", "pairs", num_pairs - num_left) if is_first else nullcontext() as progress:
        for start, pairs in parts.items():
            sequences = [_scored(document) for pair in pairs for document in run.samples[pair]]
            sums = runner.sequence_log_probs(sequences, batch_tokens=batch_tokens)
            computed[start] = sums.float().view(-1, 2).numpy()
            if progress:
                _write(folder, start, computed[start])
                progress.add(len(pairs))
    return computed


def _write(folder: Path | None, start: int, sums: np.ndarray) -> None:
    if folder is None:
        return
    try:
        make_folder(folder)
        with open_whole(folder / _name(start)) as file:
            np.save(file, sums)
    except OSError as error:
        raise DataError(
            f"{folder}: the reference's log-probabilities could not be written ({error.strerror}); free some space, or "
            "name another folder with --data-cache-path"
        ) from error


def _scored(document: Document) -> ScoredSequence:
    """A prompt and its response; only the response is scored."""
    return ScoredSequence(document.tokens, int(document.loss_mask.sum()))


def _digest(run: AlignmentRun) -> str:
    """Of the model's files and the precision; that of the samples is in the name before it."""
    described = [run.flags.source.described(), str(run.args.params_dtype)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _read(folder: Path, starts: range, num_pairs: int) -> dict[int, np.ndarray]:
    """The parts that are there, by their first pair."""
    kept = {start: np.load(folder / _name(start)) for start in starts if (folder / _name(start)).is_file()}
    sizes = {start: (min(PART_PAIRS, num_pairs - start), 2) for start in starts}
    return {start: sums for start, sums in kept.items() if sums.shape == sizes[start]}


def _name(start: int) -> str:
    return f"pairs-{start:09d}.npy"
