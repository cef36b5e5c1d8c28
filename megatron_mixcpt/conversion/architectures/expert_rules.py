"""Rules of experts that a Hugging Face checkpoint stacks in one tensor, [experts, ...].

A rule is one expert's, so a rank reads its experts alone, and of each its tensor-parallel part; export writes each
expert where it belongs in the stacked tensor. Memory is that of one expert. transformers has two layouts: that of the
engine, gate above up (Qwen3.5-MoE), and the transpose with gate and up alternating (gpt-oss).
"""

import re
from dataclasses import dataclass, replace

import torch

from megatron_mixcpt.conversion.architectures.rules import Block, Dimensions, MergeGateUp, Rename, Rule


@dataclass(frozen=True)
class _OfStack(Rule):
    """One expert's tensor as a part of all experts'; the engine's name has the expert's number."""

    def _is_transposed(self) -> bool:
        """Whether HF's tensors are the transposes of the engine's."""
        return False

    @property
    def hf_index(self) -> int:
        expert = re.search(r"\.experts\.(\d+)\.", self.engine)
        assert expert is not None, f"{self.engine} is no expert's"
        return int(expert[1])

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        step = -1 if self._is_transposed() else 1
        each = super().hf_shapes(dims)  # type: ignore[safe-super]  # the other base class has one
        return {name: (dims["experts"], *shape[::step]) for name, shape in each.items()}

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        found = super().blocks(dims, rank, size, num_rows)  # type: ignore[safe-super]  # the other base class has one
        return [replace(block, index=self.hf_index, transposed=self._is_transposed()) for block in found]

    def take_apart(self, tensor: torch.Tensor, dims: Dimensions) -> dict[str, torch.Tensor]:
        order = self.blocks(dims)[0]
        return {name: order.to_hf(part) for name, part in super().take_apart(tensor, dims).items()}


@dataclass(frozen=True)
class StackedRename(_OfStack, Rename):
    """A tensor under another name, one expert's of ``hf``: [experts, *shape], or of the transposes."""

    transposed: bool = False

    def _is_transposed(self) -> bool:
        return self.transposed


@dataclass(frozen=True)
class StackedGateUp(_OfStack, MergeGateUp):
    """The first layer of a gated MLP, one expert's of ``gate``, which is ``up`` too: gate above up in each expert."""


@dataclass(frozen=True)
class AlternatingGateUp(StackedGateUp):
    """The same with the rows of gate and up in turn, and transposed: [experts, hidden, 2 ffn]; biases as they are."""

    def _is_transposed(self) -> bool:
        return not self.bias

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        gate, up = super().blocks(dims, rank, size, num_rows)
        first, count = 2 * gate.rows.start, gate.num_rows + up.num_rows
        return [replace(gate, rows=slice(first, first + count), interleaved=True)]
