"""The rule of attention with an output gate, whose query projection makes the gate as well."""

from dataclasses import dataclass

from megatron_mixcpt.conversion.architectures.rules import Block, Dimensions, MergeQKV, rows_of_rank


@dataclass(frozen=True)
class MergeGatedQKV(MergeQKV):
    """As ``MergeQKV``, with gates: [the group's query heads, their gates, its key head, its value head] each.

    The HF query tensor holds for each head [its query, its gate] (Qwen3-Next, Qwen3.5).
    """

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        return {**super().hf_shapes(dims), self.query: self._shape(2 * dims["query"], dims)}

    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        return self._shape(2 * dims["query"] + 2 * dims["key"], dims)

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        head, heads = dims["head"], dims["query"] // dims["head"] // dims["groups"]
        blocks = []
        for group in range(dims["groups"]):
            for part in (0, 1):  # queries, gates
                starts = ((2 * (group * heads + index) + part) * head for index in range(heads))
                blocks += [Block(self.query, slice(start, start + head)) for start in starts]
            blocks += [Block(name, slice(group * head, (group + 1) * head)) for name in (self.key, self.value)]
        return rows_of_rank(blocks, rank, self.engine_shape(dims)[0] // size)
