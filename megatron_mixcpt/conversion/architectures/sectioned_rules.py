"""Rules of gated delta nets, whose tensors consist of sections that tensor parallelism divides one by one.

The engine's input projection is [query; key; value; z; beta; alpha], and its convolution [query; key; value]: each
tensor-parallel rank holds its part of every section, and a checkpoint holds every section under a key of its own. The
rules differ in how the Hugging Face tensors hold these sections.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_mixcpt.conversion.architectures.rules import Block, Dimensions, Rule, rows_of_rank

Sections = Mapping[str, Sequence[Block]]
"""For each section of the engine's tensor, in its order, the blocks that make it."""


@dataclass(frozen=True)
class SectionedRule(Rule):
    """A tensor of sections."""

    @abstractmethod
    def sections(self, dims: Dimensions) -> Sections:
        """The sections of all ranks."""

    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        return (sum(block.num_rows for block in self.blocks(dims)), *self._trailing(dims))

    def _trailing(self, dims: Dimensions) -> tuple[int, ...]:
        """What follows the rows in every tensor's shape."""
        return (dims["hidden"],)

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        rows: dict[str, int] = {}
        for block in self.blocks(dims):
            rows[block.name] = rows.get(block.name, 0) + block.num_rows
        return {name: (number, *self._trailing(dims)) for name, number in rows.items()}

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        return [
            block
            for blocks in self.sections(dims).values()
            for block in rows_of_rank(blocks, rank, sum(whole.num_rows for whole in blocks) // size)
        ]

    def stored(self, dims: Dimensions) -> list[tuple[str, list[Block]]]:
        return [(f"{self.engine}.{name}", list(blocks)) for name, blocks in self.sections(dims).items()]


@dataclass(frozen=True)
class DeltaProjection(SectionedRule):
    """Of four tensors: [query; key; value], z, beta and alpha (Qwen3.5)."""

    qkv: str
    z: str
    beta: str
    alpha: str

    def sections(self, dims: Dimensions) -> Sections:
        values, heads = dims["delta_values"], dims["delta_value_heads"]
        others = {"z": (self.z, values), "beta": (self.beta, heads), "alpha": (self.alpha, heads)}
        return _convolved(self.qkv, dims) | {
            section: [Block(name, slice(0, rows))] for section, (name, rows) in others.items()
        }


@dataclass(frozen=True)
class InterleavedDeltaProjection(SectionedRule):
    """Of two tensors: for each head of keys in turn its [query; key; its values; their z], and [beta; alpha] of its
    values (Qwen3-Next)."""

    qkvz: str
    beta_alpha: str

    def sections(self, dims: Dimensions) -> Sections:
        heads = dims["delta_key_heads"]
        key, values, number = (dims[name] // heads for name in ("delta_keys", "delta_values", "delta_value_heads"))
        large = _interleaved(self.qkvz, heads, {"query": key, "key": key, "value": values, "z": values})
        return large | _interleaved(self.beta_alpha, heads, {"beta": number, "alpha": number})


@dataclass(frozen=True)
class DeltaConvolution(SectionedRule):
    """Of one tensor, [query; key; value]."""

    hf: str

    def sections(self, dims: Dimensions) -> Sections:
        return _convolved(self.hf, dims)

    def _trailing(self, dims: Dimensions) -> tuple[int, ...]:
        return (1, dims["delta_kernel"])


def _convolved(name: str, dims: Dimensions) -> dict[str, list[Block]]:
    """Queries, keys and values, one below the other in one tensor."""
    keys, values = dims["delta_keys"], dims["delta_values"]
    return {
        "query": [Block(name, slice(0, keys))],
        "key": [Block(name, slice(keys, 2 * keys))],
        "value": [Block(name, slice(2 * keys, 2 * keys + values))],
    }


def _interleaved(name: str, num_heads: int, rows: Mapping[str, int]) -> dict[str, list[Block]]:
    """Sections of a tensor that holds ``rows`` of each in turn for every head."""
    sections: dict[str, list[Block]] = {section: [] for section in rows}
    row = 0
    for _ in range(num_heads):
        for section, number in rows.items():
            sections[section].append(Block(name, slice(row, row + number)))
            row += number
    return sections
