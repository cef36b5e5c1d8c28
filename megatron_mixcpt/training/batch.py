"""One microbatch, as every rank of a pipeline needs it.

Every rank reads its samples itself: pages of a memory-mapped file are shared between the ranks of a node, so there is
nothing to gain by sending them around, and stages in the middle know which samples are distilled without being told.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.distilled_samples import is_distilled


class Batch(NamedTuple):
    """A microbatch on this rank's device: [b, s] tensors, s being this context-parallel rank's share."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    """float32: 1 where the label counts."""
    position_ids: Tensor
    attention_mask: Tensor | None
    """bool [b, 1, s, s], True where attention is forbidden; None: causal."""
    distill_mask: Tensor | None
    """bool: whose tokens are distilled; None: nobody's."""
    packed_seq_params: PackedSeqParams | None
    """Document boundaries, for attention kernels that take them."""
    kind: Tensor | None
    """int64 [b], each sample's place in the plan's kinds; None where the samples are of one kind."""
    num_tokens: float
    """Unmasked tokens, counted on the host; where context parallelism splits the sequence, this rank's part of them."""


def get_batch(
    data_iterator: Iterator, *, fraction: float, seed: int, packed_attention: bool, cp_group: ProcessGroup
) -> Batch:
    """Take the next microbatch.

    Args:
        data_iterator: yields collated samples of :class:`MixtureDataset`.
        fraction: share of samples to distil; 0 distils none.
        seed: of the choice of samples.
        packed_attention: where samples have document boundaries, hand them to the kernel ("thd") rather than
            making a dense mask of them.
        cp_group: the context parallel group, which splits the sequence.
    """
    sample = next(data_iterator)
    chosen = is_distilled(sample.pop("sample_index"), fraction=fraction, seed=seed)
    num_tokens = float(sample["loss_mask"].sum()) / cp_group.size()
    boundaries, kind = sample.pop("cu_seqlens", None), sample.pop("dataset_id", None)
    fields = {name: sample[name].cuda(non_blocking=True) for name in ("tokens", "labels", "loss_mask", "position_ids")}
    mask = packed = None
    if boundaries is not None and packed_attention:
        packed = _packed(torch.unique_consecutive(boundaries).cuda(non_blocking=True), int(sample["max_seqlen"].max()))
    elif boundaries is not None:
        mask = document_mask(boundaries, fields["tokens"].shape[1]).cuda(non_blocking=True)
    batch = get_batch_on_this_cp_rank(
        fields | {"attention_mask": mask}, False, cp_group, use_per_sequence_balancing=True
    )
    distill_mask = None
    if chosen.any():  # on the host: no wait for the device
        distill_mask = chosen.cuda(non_blocking=True).unsqueeze(1).expand_as(batch["tokens"])
    kind = None if kind is None else kind.cuda(non_blocking=True)
    return Batch(**batch, distill_mask=distill_mask, packed_seq_params=packed, kind=kind, num_tokens=num_tokens)


def document_mask(boundaries: Tensor, seq_length: int) -> Tensor:
    """The dense mask of causal attention within documents.

    Args:
        boundaries: int [b, n], each row the documents' first positions, then ``seq_length`` (as often as it takes).
        seq_length: of the sample, in tokens.

    Returns:
        bool [b, 1, s, s], True where attention is forbidden.
    """
    position = torch.arange(seq_length, device=boundaries.device)
    document = torch.searchsorted(boundaries, position.expand(len(boundaries), -1).contiguous(), right=True)
    other_document = document.unsqueeze(2) != document.unsqueeze(1)
    return (other_document | (position.unsqueeze(1) < position)).unsqueeze(1)


def _packed(boundaries: Tensor, max_length: int) -> PackedSeqParams:
    """One sequence's document boundaries, int32 [documents + 1], as Transformer Engine takes them."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max_length,
        max_seqlen_kv=max_length,
    )
