"""The rules between HF and engine tensors: interleaving worked out by hand, shards that tile, and their own inverse."""

from dataclasses import replace

import pytest
import torch

from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.conversion.architectures.rules import Block, MergeGateUp, MergeQKV, Rename, dimensions

# 4 query heads in 2 groups, head size 2; q, k and v have 8, 4 and 4 rows.
ARGUMENTS = {
    "hidden_size": 6,
    "ffn_hidden_size": 12,
    "vocab_size": 7,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 2,
    "num_experts": 2,
    "moe_ffn_hidden_size": 8,
}
DIMS = dimensions(ARGUMENTS)
QKV = MergeQKV("qkv", "q", "k", "v")
FUSED_QKV = MergeQKV("qkv", "qkv_proj", "qkv_proj", "qkv_proj")
GATE_UP = MergeGateUp("fc1", "gate", "up")


def gather(rule, tensors: dict[str, torch.Tensor], rank: int = 0, size: int = 1, num_rows=None) -> torch.Tensor:
    """A rank's part, from whole HF tensors in memory."""
    blocks = rule.blocks(DIMS, rank, size, num_rows)
    parts = [(tensors[block.name][block.rows], block.columns) for block in blocks]
    return torch.cat([part if columns is None else part[:, columns] for part, columns in parts])


def random_tensors(rule) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in rule.hf_shapes(DIMS).items()}


def test_qkv_interleaves_by_query_group():
    """Two groups of two query heads: [q0 q1 k0 v0, q2 q3 k1 v1], two rows a head."""
    rows = [("q", 0, 4), ("k", 0, 2), ("v", 0, 2), ("q", 4, 8), ("k", 2, 4), ("v", 2, 4)]
    assert QKV.blocks(DIMS) == [Block(name, slice(start, stop)) for name, start, stop in rows]


def test_qkv_in_one_tensor_gives_the_same():
    tensors = random_tensors(QKV)
    fused = {"qkv_proj": torch.cat([tensors["q"], tensors["k"], tensors["v"]])}
    torch.testing.assert_close(gather(FUSED_QKV, fused), gather(QKV, tensors), rtol=0, atol=0)


def test_qkv_with_more_ranks_than_groups_takes_plain_ranges():
    tensors = random_tensors(QKV)
    parts = [gather(QKV, tensors, rank, 4) for rank in range(4)]
    torch.testing.assert_close(torch.cat(parts), gather(QKV, tensors), rtol=0, atol=0)


def test_each_rank_holds_its_gate_then_its_up():
    tensors = random_tensors(GATE_UP)
    for rank in range(3):
        expected = torch.cat([tensors["gate"].chunk(3)[rank], tensors["up"].chunk(3)[rank]])
        torch.testing.assert_close(gather(GATE_UP, tensors, rank, 3), expected, rtol=0, atol=0)


def test_row_parallel_takes_columns():
    rule = Rename("proj", "o", ("hidden", "query"), split=1)
    tensors = random_tensors(rule)
    parts = [gather(rule, tensors, rank, 2) for rank in range(2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), tensors["o"], rtol=0, atol=0)


def test_vocabulary_padding_falls_off_the_end():
    """7 rows over 3 ranks of 3 rows: the last rank has one row of the checkpoint and two of padding."""
    rule = Rename("embedding", "e", ("vocab", "hidden"), split=0)
    counts = [sum(block.num_rows for block in rule.blocks(DIMS, rank, 3, num_rows=3)) for rank in range(3)]
    assert counts == [3, 3, 1]
    assert rule.blocks(DIMS, 4, 5, num_rows=2) == []


def test_biases_are_merged_as_the_rows_of_their_weights():
    for weight, bias in ((QKV, replace(QKV, bias=True)), (GATE_UP, replace(GATE_UP, bias=True))):
        assert bias.blocks(DIMS, 1, 2) == weight.blocks(DIMS, 1, 2)
        assert bias.engine_shape(DIMS) == weight.engine_shape(DIMS)[:1]
        assert bias.hf_shapes(DIMS) == {name: shape[:1] for name, shape in weight.hf_shapes(DIMS).items()}


@pytest.mark.parametrize("rule", [QKV, FUSED_QKV, GATE_UP, MergeGateUp("fc1", "gate_up", "gate_up")])
def test_taking_apart_undoes_merging(rule):
    tensors = random_tensors(rule)
    for name, tensor in rule.take_apart(gather(rule, tensors), DIMS).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_engine_row_has_one_source(name):
    """Per architecture: no HF tensor is consumed twice, and blocks fill exactly the engine's rows."""
    seen: list[str] = []
    biases = [rule for rules in ARCHITECTURES[name].biases.values() for rule in rules]
    for template in (*ARCHITECTURES[name].name_map, *biases):
        for rule in template.instances(range(2), num_experts=2):
            assert sum(block.num_rows for block in rule.blocks(DIMS)) == rule.engine_shape(DIMS)[0]
            seen += [f"{name}[{rule.hf_index}]" for name in rule.hf_shapes(DIMS)]
    assert len(seen) == len(set(seen))
    assert not any("{" in name for name in seen)
