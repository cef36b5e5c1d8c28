"""Queries that grow with their position, by hand."""

import math

import torch

from megatron_mixcpt.models.layer_options.position_scale import scale_by_position
from megatron_mixcpt.models.options import PositionScale
from megatron_mixcpt.models.sliding_window import Chunk
from megatron_mixcpt.testing import run_distributed


def test_queries_grow_in_steps() -> None:
    run_distributed(check_queries, 1, cpu_emulation=True)


def check_queries() -> None:
    """The first and the last of four chunks of 4, as a context-parallel rank has them."""
    query = torch.ones(8, 2, 3, 5)
    scaled = scale_by_position(query, [Chunk(0, 4, 0), Chunk(4, 4, 12)], PositionScale(beta=0.5, length=4))
    expected = [1.0] * 4 + [1 + 0.5 * math.log(1 + 3)] * 4
    torch.testing.assert_close(scaled, torch.tensor(expected).view(-1, 1, 1, 1).expand_as(scaled))
    assert scale_by_position(query.bfloat16(), [Chunk(0, 8, 0)], PositionScale(0.5, 4)).dtype == torch.bfloat16
