"""Stacked experts: read by slices from a file, they are what transformers' matrices say, and written they are the file.

The reference indexes the whole tensors as transformers' experts do: GptOssExperts alternates gate and up in the columns
of [hidden, 2 ffn], Qwen3.5-MoE's have gate above up in the rows of [2 ffn, hidden].
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.architectures.expert_rules import AlternatingGateUp, StackedGateUp, StackedRename
from megatron_mixcpt.conversion.architectures.rules import Rule, dimensions
from megatron_mixcpt.conversion.tensor_files.reader import SafetensorsFolder
from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape
from tests.unit.conversion.architectures.test_rules import ARGUMENTS

DIMS = dimensions(ARGUMENTS)  # 2 experts, hidden size 6, experts' feed-forward size 8
EXPERT = "layers.0.mlp.experts.{expert}."
GATE_UP = {"gate": "gate_up", "up": "gate_up", "inner": "expert_ffn"}


def alternating(tensor: torch.Tensor, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up of gpt-oss, of weights in the engine's orientation or of biases."""
    gate, up = tensor[expert][..., ::2], tensor[expert][..., 1::2]
    return (gate.T, up.T) if gate.dim() == 2 else (gate, up)


RULES: dict[str, tuple[Rule, object]] = {
    "gate above up": (
        StackedGateUp(EXPERT + "linear_fc1.weight", **GATE_UP),
        lambda tensor, expert: (tensor[expert][:8], tensor[expert][8:]),
    ),
    "gate and up in turn": (AlternatingGateUp(EXPERT + "linear_fc1.weight", **GATE_UP), alternating),
    "their biases": (AlternatingGateUp(EXPERT + "linear_fc1.bias", **GATE_UP, bias=True), alternating),
    "down": (
        StackedRename(EXPERT + "linear_fc2.weight", "down", ("hidden", "expert_ffn"), split=1),
        lambda tensor, expert: (tensor[expert],),
    ),
    "down, transposed": (
        StackedRename(EXPERT + "linear_fc2.weight", "down", ("hidden", "expert_ffn"), split=1, transposed=True),
        lambda tensor, expert: (tensor[expert].T,),
    ),
    "a bias": (
        StackedRename(EXPERT + "linear_fc2.bias", "down_bias", ("hidden",)),
        lambda tensor, expert: (tensor[expert],),
    ),
}


def read(rule: Rule, tensors: SafetensorsFolder, rank: int = 0, size: int = 1) -> torch.Tensor:
    blocks = rule.blocks(DIMS, rank, size)
    return torch.cat([block.from_hf(tensors.read(block.name, *block.hf_slices, block.index)) for block in blocks])


@pytest.mark.parametrize("case", RULES)
def test_ranks_read_their_part_of_each_expert_and_no_more(case: str, tmp_path: Path) -> None:
    template, parts_of = RULES[case]
    ((name, shape),) = template.hf_shapes(DIMS).items()
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({name: whole}, tmp_path / "model.safetensors")
    tensors = SafetensorsFolder(tmp_path)
    for expert, rule in enumerate(template.instances([0], num_experts=2)):
        parts = parts_of(whole, expert)
        assert rule.engine_shape(DIMS) == tuple(torch.cat(parts).shape)
        for rank in range(2):
            axis = 1 if rule.splits_columns else 0 if rule.is_divided(DIMS) else None
            expected = torch.cat([part if axis is None else part.chunk(2, axis)[rank] for part in parts])
            before = tensors.bytes_read
            torch.testing.assert_close(read(rule, tensors, rank, 2), expected, rtol=0, atol=0)
            assert tensors.bytes_read - before == expected.nbytes


@pytest.mark.parametrize("case", RULES)
def test_experts_written_one_by_one_are_the_file(case: str, tmp_path: Path) -> None:
    template, _ = RULES[case]
    ((name, shape),) = template.hf_shapes(DIMS).items()
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file({name: whole}, tmp_path / "model.safetensors")
    tensors = SafetensorsFolder(tmp_path)
    writer = SafetensorsWriter(tmp_path / "out", {name: TensorShape(shape, whole.dtype)})
    (tmp_path / "out").mkdir()
    writer.create()
    for rule in reversed(list(template.instances([0], num_experts=2))):
        for part_name, part in rule.take_apart(read(rule, tensors), DIMS).items():
            writer.write(part_name, part, rule.hf_index)
    torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors")[name], whole, rtol=0, atol=0)
