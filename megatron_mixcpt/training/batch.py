"""One microbatch, as every rank of a pipeline needs it.

Every rank reads its samples itself: pages of a memory-mapped file are shared between the ranks of a node, so there is
nothing to gain by sending them around, and stages in the middle know which samples are distilled without being told.
Only what was read goes to the device, from pinned memory, so that the copy waits for nothing; what follows from it,
such as the mask of documents, is computed there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.distilled_samples import is_distilled
from megatron_mixcpt.models.context_parallel import share_of_sequence
from megatron_mixcpt.models.query_blocks import MASKED_SCORE


class Batch(NamedTuple):
    """A microbatch on this rank's device: [b, s] tensors, s being this context-parallel rank's share."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    """float32: 1 where the label counts."""
    position_ids: Tensor
    attention_mask: Tensor | None
    """[b, 1, s, s of all ranks], what attention adds to the scores, see :func:`document_mask`; None: causal."""
    distill_mask: Tensor | None
    """bool: whose tokens are distilled; None: nobody's."""
    packed_seq_params: PackedSeqParams | None
    """Document boundaries, for attention kernels that take them."""
    kind: Tensor | None
    """int64 [b], each sample's place in the plan's datasets; None where there is only one."""
    num_tokens: float
    """Unmasked tokens, counted on the host; of a sequence that ranks share, to each rank an even part of them: what the
    ranks have adds up to the number that the engine divides by."""


def get_batch(
    data_iterator: Iterator,
    *,
    fraction: float,
    seed: int,
    packed_attention: bool,
    mask_dtype: torch.dtype,
    cp_group: ProcessGroup,
) -> Batch:
    """Take the next microbatch.

    Args:
        data_iterator: yields collated samples of :class:`MixtureDataset`.
        fraction: share of samples to distil; 0 distils none.
        seed: of the choice of samples.
        packed_attention: where samples have document boundaries, hand them to the kernel ("thd") rather than
            making a dense mask of them.
        mask_dtype: of the dense mask, the queries'.
        cp_group: the context parallel group, which splits the sequence.
    """
    sample = next(data_iterator)
    chosen = is_distilled(sample.pop("sample_index"), fraction=fraction, seed=seed)
    num_tokens = float(sample["loss_mask"].sum()) / cp_group.size()
    boundaries, kind = sample.pop("cu_seqlens", None), sample.pop("dataset_id", None)
    fields = {name: to_device(sample[name]) for name in ("tokens", "labels", "loss_mask", "position_ids")}
    mask = packed = None
    if boundaries is not None and packed_attention:
        packed = _packed(to_device(torch.unique_consecutive(boundaries)), int(sample["max_seqlen"].max()))
    elif boundaries is not None:
        mask = document_mask(to_device(boundaries), fields["tokens"].shape[1], mask_dtype, cp_group)
    batch = share_of_sequence(fields, cp_group)
    distill_mask = None
    if chosen.any():  # on the host: no wait for the device
        distill_mask = to_device(chosen).unsqueeze(1).expand_as(batch["tokens"])
    kind = None if kind is None else to_device(kind)
    return Batch(
        **batch,
        attention_mask=mask,
        distill_mask=distill_mask,
        packed_seq_params=packed,
        kind=kind,
        num_tokens=num_tokens,
    )


def to_device(tensor: Tensor) -> Tensor:
    """A host tensor on this rank's device. Copies from memory that is not pinned may wait for all that the device does.

    Tensors of the engine's loader are pinned already, and are not copied on the host.
    """
    return tensor.pin_memory().cuda(non_blocking=True)


def document_mask(
    boundaries: Tensor, seq_length: int, dtype: torch.dtype, cp_group: ProcessGroup | None = None
) -> Tensor:
    """The dense mask of causal attention within documents, on the boundaries' device.

    All layers share it, for it is what attention adds to the scores: of a bool mask, each layer would make such a
    tensor of its own, and keep it for its backward pass.

    Args:
        boundaries: integers [b, n], in each row the documents' first positions, then ``seq_length`` (as often as it
            takes).
        seq_length: of the sample, in tokens.
        dtype: the queries'.
        cp_group: the ranks that share the sequence; None: none do.

    Returns:
        [b, 1, s/cp, s], rows for this rank's tokens: ``MASKED_SCORE`` where attention is forbidden, 0 elsewhere.
    """
    position = torch.arange(seq_length, device=boundaries.device, dtype=boundaries.dtype).expand(len(boundaries), -1)
    document = torch.searchsorted(boundaries, position.contiguous(), right=True)
    own = share_of_sequence({"position": position, "document": document}, cp_group)
    mask = torch.zeros(*own["position"].shape, seq_length, dtype=dtype, device=boundaries.device)
    mask.masked_fill_(own["document"].unsqueeze(2) != document.unsqueeze(1), MASKED_SCORE)
    mask.masked_fill_(own["position"].unsqueeze(2) < position.unsqueeze(1), MASKED_SCORE)
    return mask.unsqueeze(1)


def _packed(boundaries: Tensor, max_length: int) -> PackedSeqParams:
    """One sequence's document boundaries, int32 [documents + 1], as Transformer Engine takes them."""
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=max_length,
        max_seqlen_kv=max_length,
    )
