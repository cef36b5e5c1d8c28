"""Context parallelism: a rank's share of a sequence, and attention over all of it without Transformer Engine.

The engine cuts a sequence into 2 cp chunks, cp ranks; rank r holds chunks r and 2 cp - 1 - r (``zigzag``, see
``get_batch_on_this_cp_rank`` in megatron/core/utils.py), so that all ranks have the same share of a causal mask. Each
rank keeps its queries and gathers the keys and values of all, one collective per layer. Beside a ring, which passes
them round piece by piece, this takes memory for whole keys and values in each layer, which grouped queries keep small,
and any kernel that computes attention can be used as it is.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed import ProcessGroup


def gather_keys_and_values(key: Tensor, value: Tensor, cp_group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Keys and values of the whole sequence, in its order.

    One all-gather forward and one reduce-scatter backward, both in the tensors' dtype. Nothing is kept for backward.

    Args:
        key, value: [s/cp, b, ng, hn], this rank's two chunks.
        cp_group: the ranks that share the sequence; None or one rank: nothing is done.

    Returns:
        [s, b, ng, hn] each, views of one tensor.
    """
    if cp_group is None or cp_group.size() == 1:
        return key, value
    whole = _GatherSequence.apply(torch.stack([key, value], dim=1), cp_group)
    key, value = whole.unbind(1)
    return key, value


def share_of_sequence(tensors: Mapping[str, Tensor], cp_group: ProcessGroup | None) -> dict[str, Tensor]:
    """This rank's two chunks of tensors [b, s, ...]: [b, s/cp, ...]. ``s`` is a multiple of twice the ranks."""
    if cp_group is None or cp_group.size() == 1:
        return dict(tensors)
    return get_batch_on_this_cp_rank(dict(tensors), False, cp_group, use_per_sequence_balancing=True)


def sum_over_shares(sums: Tensor, cp_group: ProcessGroup | None) -> Tensor:
    """Sums over this rank's tokens, any shape -> over all ranks', the same on each. One all-reduce, none in backward.

    Every rank computes the same from the result, and its gradient is that of its own tokens: nothing is counted twice
    as long as the ranks' gradients are added up afterwards, as the engine does.
    """
    return sums if cp_group is None or cp_group.size() == 1 else _SumOverShares.apply(sums, cp_group)


def chunk_numbers(cp_group: ProcessGroup) -> tuple[int, int]:
    """The two chunks of a sequence that this rank holds, counted from 0."""
    rank, size = cp_group.rank(), cp_group.size()
    return rank, 2 * size - 1 - rank


class _SumOverShares(torch.autograd.Function):
    """An all-reduce whose gradient passes as it is."""

    @staticmethod
    def forward(ctx: FunctionCtx, sums: Tensor, group: ProcessGroup) -> Tensor:
        total = sums.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad, None


class _GatherSequence(torch.autograd.Function):
    """[s/cp, ...] of each rank in zigzag order -> [s, ...] in the sequence's order; backward adds up the ranks'."""

    @staticmethod
    def forward(ctx: FunctionCtx, mine: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined] # how autograd functions keep what is no tensor
        size = group.size()
        by_rank = mine.new_empty(size * mine.size(0), *mine.shape[1:])
        dist.all_gather_into_tensor(by_rank, mine.contiguous(), group=group)
        halves = by_rank.view(size, 2, mine.size(0) // 2, *mine.shape[1:])
        return torch.cat([halves[:, 0], halves[:, 1].flip(0)]).flatten(0, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        group = ctx.group  # type: ignore[attr-defined] # see above
        size = group.size()
        chunks = grad.view(2 * size, grad.size(0) // (2 * size), *grad.shape[1:])
        by_rank = torch.stack([chunks[:size], chunks[size:].flip(0)], dim=1).flatten(0, 2)
        mine = grad.new_empty(grad.size(0) // size, *grad.shape[1:])
        dist.reduce_scatter_tensor(mine, by_rank, group=group)
        return mine, None
