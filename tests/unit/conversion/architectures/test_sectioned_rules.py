"""Rules of gated delta nets and gated attention: orders worked out by hand, shards by section, their own inverse."""

import pytest
import torch

from megatron_mixcpt.conversion.architectures.gated_rules import MergeGatedQKV
from megatron_mixcpt.conversion.architectures.rules import Block, Rule, dimensions
from megatron_mixcpt.conversion.architectures.sectioned_rules import (
    DeltaConvolution,
    DeltaProjection,
    InterleavedDeltaProjection,
)

# 2 heads of keys of size 3, 4 heads of values of size 2: 6 rows of queries and keys, 8 of values.
DIMS = dimensions(
    {
        **{"hidden_size": 5, "ffn_hidden_size": 12, "vocab_size": 7, "num_attention_heads": 4, "num_query_groups": 2},
        **{"kv_channels": 2, "linear_attention_freq": [1, 0], "linear_num_key_heads": 2, "linear_num_value_heads": 4},
        **{"linear_key_head_dim": 3, "linear_value_head_dim": 2, "linear_conv_kernel_dim": 4},
    }
)
PROJECTION = DeltaProjection("in", "qkv", "z", "b", "a")
INTERLEAVED = InterleavedDeltaProjection("in", "qkvz", "ba")
CONVOLUTION = DeltaConvolution("conv", "c")
GATED = MergeGatedQKV("qkv", "q", "k", "v")
RULES: list[Rule] = [PROJECTION, INTERLEAVED, CONVOLUTION, GATED]


def tensors_of(rule: Rule) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in rule.hf_shapes(DIMS).items()}


def gather(rule: Rule, tensors: dict[str, torch.Tensor], rank: int = 0, size: int = 1) -> torch.Tensor:
    return torch.cat([tensors[block.name][block.rows] for block in rule.blocks(DIMS, rank, size)])


def rows(*blocks: tuple[str, int, int]) -> list[Block]:
    return [Block(name, slice(start, stop)) for name, start, stop in blocks]


def test_gates_follow_the_queries_of_their_group() -> None:
    """Heads 0 and 1 of the first group, each [query, gate] of 2 rows; then their gates, its key and its value."""
    assert GATED.blocks(DIMS)[:6] == rows(("q", 0, 2), ("q", 4, 6), ("q", 2, 4), ("q", 6, 8), ("k", 0, 2), ("v", 0, 2))
    assert GATED.hf_shapes(DIMS)["q"] == (16, 5) and GATED.engine_shape(DIMS) == (24, 5)


def test_a_rank_holds_its_part_of_every_section() -> None:
    expected = rows(("qkv", 3, 6), ("qkv", 9, 12), ("qkv", 16, 20), ("z", 4, 8), ("b", 2, 4), ("a", 2, 4))
    assert PROJECTION.blocks(DIMS, rank=1, size=2) == expected
    assert CONVOLUTION.blocks(DIMS, rank=1, size=2) == rows(("c", 3, 6), ("c", 9, 12), ("c", 16, 20))


def test_interleaved_heads_become_sections() -> None:
    """Each head of keys has 3 rows of queries, 3 of keys, 4 of values and 4 of z; and 2 of beta and of alpha."""
    first = rows(("qkvz", 0, 3), ("qkvz", 3, 6), ("qkvz", 6, 10), ("qkvz", 10, 14), ("ba", 0, 2), ("ba", 2, 4))
    assert INTERLEAVED.blocks(DIMS, rank=0, size=2) == first
    assert [block.name for block in INTERLEAVED.blocks(DIMS)] == ["qkvz"] * 8 + ["ba"] * 4
    assert INTERLEAVED.blocks(DIMS)[:2] == rows(("qkvz", 0, 3), ("qkvz", 14, 17))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_rules_are_their_own_inverse_and_their_ranks_and_parts_cover_them(rule: Rule) -> None:
    tensors = tensors_of(rule)
    whole = gather(rule, tensors)
    assert whole.shape == rule.engine_shape(DIMS)
    for name, tensor in rule.take_apart(whole, DIMS).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)
    of_ranks = torch.cat([gather(rule, tensors, rank, 2) for rank in range(2)])
    torch.testing.assert_close(of_ranks.flatten().sort()[0], whole.flatten().sort()[0], rtol=0, atol=0)
    stored = [block for _, blocks in rule.stored(DIMS) for block in blocks]
    assert stored == rule.blocks(DIMS)


def test_sections_have_keys_of_their_own() -> None:
    assert [name for name, _ in PROJECTION.stored(DIMS)] == [
        f"in.{section}" for section in ("query", "key", "value", "z", "beta", "alpha")
    ]
    assert [name for name, _ in CONVOLUTION.stored(DIMS)] == ["conv.query", "conv.key", "conv.value"]
