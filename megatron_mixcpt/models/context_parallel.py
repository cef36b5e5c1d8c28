"""Context parallelism: a rank's share of a sequence, and attention over all of it without Transformer Engine.

The engine cuts a sequence into 2 cp chunks, cp ranks; rank r holds chunks r and 2 cp - 1 - r (``zigzag``, see
``get_batch_on_this_cp_rank`` in megatron/core/utils.py), so that all ranks have the same share of a causal mask. Each
rank keeps its queries and gathers the keys and values of all, one collective per layer. Beside a ring, which passes
them round piece by piece, this takes memory for whole keys and values in each layer, which grouped queries keep small,
and any kernel that computes attention can be used as it is.
"""

from collections.abc import Mapping

import torch
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor
from torch.distributed import ProcessGroup


def share_of_sequence(tensors: Mapping[str, Tensor], cp_group: ProcessGroup | None) -> dict[str, Tensor]:
    """This rank's two chunks of tensors [b, s, ...]: [b, s/cp, ...]. ``s`` is a multiple of twice the ranks."""
    if cp_group is None or cp_group.size() == 1:
        return dict(tensors)
    return get_batch_on_this_cp_rank(dict(tensors), False, cp_group, use_per_sequence_balancing=True)


def chunk_numbers(cp_group: ProcessGroup) -> tuple[int, int]:
    """The two chunks of a sequence that this rank holds, counted from 0."""
    rank, size = cp_group.rank(), cp_group.size()
    return rank, 2 * size - 1 - rank


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
    whole = gather_sequence(torch.cat([key, value], dim=-1), cp_group)
    key, value = whole.split([key.size(-1), value.size(-1)], dim=-1)
    return key, value


def gather_sequence(chunks: Tensor, cp_group: ProcessGroup | None) -> Tensor:
    """This rank's two chunks [s/cp, ...] -> the whole sequence in its order [s, ...]; communication as above."""
    if cp_group is None or cp_group.size() == 1:
        return chunks
    by_rank = gather_from_sequence_parallel_region(chunks, group=cp_group)
    first, second = by_rank.unflatten(0, (cp_group.size(), 2, -1)).unbind(1)
    return torch.cat([first, second.flip(0)]).flatten(0, 1)


def sum_over_shares(sums: Tensor, cp_group: ProcessGroup | None) -> Tensor:
    """Sums over this rank's tokens, any shape -> over all ranks', the same on each. One all-reduce, none in backward.

    Every rank computes the same from the result, and its gradient is that of its own tokens: nothing is counted twice
    as long as the ranks' gradients are added up afterwards, as the engine does. ``sums`` may be modified in place.
    """
    return sums if cp_group is None else reduce_from_tensor_model_parallel_region(sums, group=cp_group)
