"""Queries that grow with their position: Ministral 3 (transformers' ``get_llama_4_attn_scale``).

q * (1 + beta * ln(1 + floor(position / length)))        positions from 0
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_mixcpt.models.options import PositionScale
from megatron_mixcpt.models.sliding_window import Chunk


def scale_by_position(query: Tensor, chunks: Sequence[Chunk], scale: PositionScale) -> Tensor:
    """[sq, b, np, hn] -> the same, each query by the factor of its place in the sequence.

    Args:
        chunks: where in the sequence this rank's queries stand, in order.
        scale: the option.
    """
    places = [torch.arange(place, place + count, device=query.device) for _, count, place in chunks]
    factor = 1 + scale.beta * torch.log1p((torch.cat(places) // scale.length).float())
    return query * factor.to(query.dtype).view(-1, 1, 1, 1)
