"""The DPO reference's log-probabilities, computed once before training and looked up in it.

With ``--save`` they are kept as ``SAVE/reference.npz``, so that a restarted run does not compute them again. A digest
of the model's files and of the samples goes with them; where either is another, they are computed anew.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_mixcpt.data.datasets.packed_rows import Document
from megatron_mixcpt.inference.batches import ScoredSequence
from megatron_mixcpt.inference.runner import ForwardRunner
from megatron_mixcpt.jobs.whole_outputs import open_whole
from megatron_mixcpt.training.alignment.arguments import AlignmentRun


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
        run: the checked command line.
        groups: from ``engine.start_distributed``.
    """
    args = run.args
    cache = Path(args.save) / "reference.npz" if args.save else None
    digest = _digest(run)
    kept = _read(cache, digest) if cache and args.rank == 0 else None
    everywhere = [kept]
    dist.broadcast_object_list(everywhere, src=0)
    if everywhere[0] is not None:
        return ReferenceSums(torch.from_numpy(everywhere[0]))
    runner = ForwardRunner(run.source, dtype=args.params_dtype)
    sequences = [_scored(document) for sample in run.samples for document in sample]
    sums = runner.sequence_log_probs(sequences, batch_tokens=args.micro_batch_size * args.seq_length)
    sums = sums.float().view(-1, 2)
    if cache and args.rank == 0:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with open_whole(cache) as file:
            np.savez(file, digest=np.array(digest), sums=sums.numpy())
    return ReferenceSums(sums)


def _scored(document: Document) -> ScoredSequence:
    """A prompt and its response; only the response is scored."""
    return ScoredSequence(document.tokens, int(document.loss_mask.sum()))


def _digest(run: AlignmentRun) -> str:
    """Of the model's files and of every sample, in order."""
    digest = hashlib.sha256(json.dumps(run.source.described()).encode())
    for sample in run.samples:
        for document in sample:
            digest.update(document.tokens.tobytes() + document.loss_mask.tobytes())
    return digest.hexdigest()


def _read(cache: Path, digest: str) -> np.ndarray | None:
    if not cache.exists():
        return None
    with np.load(cache) as content:
        return content["sums"] if str(content["digest"]) == digest else None
