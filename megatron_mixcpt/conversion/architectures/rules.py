"""Reversible rules between the engine's tensors and those of a Hugging Face checkpoint.

A rule knows which blocks (rows, and columns for a row-parallel weight) of which HF tensors, one below the other, make a
tensor-parallel rank's part of an engine tensor. Reading uses the blocks to fetch only the rank's bytes; export uses the
same blocks, at tensor-parallel size 1, to cut the engine's tensor apart again. So every rule is reversible.

Engine names are the keys of the engine's checkpoints, which are those of its Transformer Engine layers. ``{layer}`` and
``{expert}`` stand for indices. Shapes are written in the symbols of :func:`dimensions`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any

import torch

Dimensions = Mapping[str, int]

_LATENT = ("qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank")


def dimensions(engine_arguments: Mapping[str, Any]) -> Dimensions:
    """The symbols that rules write shapes in, each with its size, from the engine's arguments."""
    head = engine_arguments["kv_channels"]
    plain, rotating, value, kv_rank, q_rank = (engine_arguments.get(name) or 0 for name in _LATENT)
    heads = engine_arguments["num_attention_heads"]
    return {
        "one": 1,
        "hidden": engine_arguments["hidden_size"],
        "ffn": engine_arguments["ffn_hidden_size"],
        "vocab": engine_arguments["vocab_size"],
        "head": head,
        "heads": heads,
        "groups": engine_arguments["num_query_groups"],
        "query": heads * head,
        "key": engine_arguments["num_query_groups"] * head,
        **_delta_dimensions(engine_arguments),
        "experts": engine_arguments.get("num_experts") or 0,
        "expert_ffn": engine_arguments.get("moe_ffn_hidden_size") or engine_arguments["ffn_hidden_size"],
        "shared_ffn": engine_arguments.get("moe_shared_expert_intermediate_size") or 0,
        "q_rank": q_rank,
        "kv_rank": kv_rank,
        "kv_rank_and_rope": kv_rank + rotating,
        "latent_query": heads * (plain + rotating),
        "latent_kv": heads * (plain + value),
        "latent_value": heads * value,
    }


def _delta_dimensions(engine_arguments: Mapping[str, Any]) -> dict[str, int]:
    """Of gated delta nets; empty for models without."""
    if not engine_arguments.get("linear_attention_freq"):
        return {}
    key_heads, value_heads = engine_arguments["linear_num_key_heads"], engine_arguments["linear_num_value_heads"]
    return {
        "delta_key_heads": key_heads,
        "delta_value_heads": value_heads,
        "delta_keys": key_heads * engine_arguments["linear_key_head_dim"],
        "delta_value": engine_arguments["linear_value_head_dim"],
        "delta_values": value_heads * engine_arguments["linear_value_head_dim"],
        "delta_kernel": engine_arguments["linear_conv_kernel_dim"],
    }


@dataclass(frozen=True)
class Block:
    """Rows ``[start, stop)`` and, where given, columns of one HF tensor, or of one of those stacked in it."""

    name: str
    rows: slice
    columns: slice | None = None
    index: int | None = None
    """Which of the tensors that are stacked in the HF tensor's first axis; None: the HF tensor is one."""
    transposed: bool = False
    """Whether the engine's tensor is the transpose of HF's; rows and columns are those of the engine's."""
    interleaved: bool = False
    """Whether the rows alternate in HF's tensor, 0 1 0 1, where the engine has those of 0 above those of 1."""

    @property
    def hf_slices(self) -> tuple[slice | None, slice | None]:
        """Rows and columns of the block in HF's tensor; None: all."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    def from_hf(self, part: torch.Tensor) -> torch.Tensor:
        """The engine's rows from HF's part of ``hf_slices``; a view where rows are not interleaved."""
        part = part.T if self.transposed else part
        return torch.cat([part[::2], part[1::2]]) if self.interleaved else part

    def to_hf(self, rows: torch.Tensor) -> torch.Tensor:
        """HF's part from the engine's rows, the inverse of :meth:`from_hf`."""
        rows = torch.stack(rows.chunk(2), dim=1).flatten(0, 1) if self.interleaved else rows
        return rows.T if self.transposed else rows

    @property
    def num_rows(self) -> int:
        """How many rows of the engine's tensor the block fills."""
        return self.rows.stop - self.rows.start


@dataclass(frozen=True)
class Rule(ABC):
    """One engine tensor and the HF tensors that make it."""

    engine: str

    def instances(self, layers: Iterable[int], num_experts: int) -> Iterator["Rule"]:
        """This rule for each of the layers, counted from 0, and every expert that its engine name refers to."""
        for layer in layers if "{layer}" in self.engine else (None,):
            for expert in range(num_experts) if "{expert}" in self.engine else (None,):
                names = {f.name: getattr(self, f.name) for f in fields(self)}
                texts = {key: value for key, value in names.items() if isinstance(value, str)}
                yield replace(self, **{key: text.format(layer=layer, expert=expert) for key, text in texts.items()})

    @property
    def is_expert(self) -> bool:
        """Whether the tensor belongs to one expert, hence to the expert tensor-parallel group."""
        return ".experts." in self.engine

    @property
    def splits_columns(self) -> bool:
        """Whether tensor-parallel ranks hold columns (a row-parallel weight) rather than rows."""
        return False

    @property
    def hf_index(self) -> int | None:
        """Which of the tensors stacked in the first axis of the HF tensors the rule makes; None: all of each."""
        return None

    @abstractmethod
    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        """Shape of every HF tensor consumed; one consumed by parts appears once, with its full shape."""

    @abstractmethod
    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        """Shape of the engine's tensor at tensor-parallel size 1, without vocabulary padding."""

    @abstractmethod
    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        """The blocks that, stacked, fill this rank's part; ``num_rows``: its rows where the engine padded them."""

    def num_parameters(self, dims: Dimensions) -> int:
        """Numbers in the engine's tensor."""
        return math.prod(self.engine_shape(dims))

    def is_divided(self, dims: Dimensions) -> bool:
        """Whether tensor parallelism divides the tensor: whether the first of two ranks reads less than all."""
        rows = sum(block.num_rows for block in self.blocks(dims, rank=0, size=2))
        return self.splits_columns or rows < self.engine_shape(dims)[0]

    def stored(self, dims: Dimensions) -> list[tuple[str, list[Block]]]:
        """The tensors that a checkpoint holds it as, usually itself: name and blocks of each, one below the other."""
        return [(self.engine, self.blocks(dims))]

    def take_apart(self, tensor: torch.Tensor, dims: Dimensions) -> dict[str, torch.Tensor]:
        """Cut the full engine tensor into HF tensors; rows past the last block are padding and dropped.

        Where HF stacks such tensors, each is the one of ``hf_index``.

        HF tensors that are one block are views of ``tensor``; the others are copies.
        """
        blocks, row = self.blocks(dims), 0
        parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
        for block in blocks:
            parts.setdefault(block.name, []).append((block.rows.start, tensor[row : row + block.num_rows]))
            row += block.num_rows
        return {
            name: found[0][1] if len(found) == 1 else torch.cat([part for _, part in sorted(found, key=itemgetter(0))])
            for name, found in parts.items()
        }


@dataclass(frozen=True)
class Rename(Rule):
    """The same tensor under another name, split over tensor-parallel ranks by ``split``: 0 rows, 1 columns, or None."""

    hf: str
    shape: tuple[str, ...]
    split: int | None = None

    @property
    def splits_columns(self) -> bool:
        return self.split == 1

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        return {self.hf: self.engine_shape(dims)}

    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        return tuple(dims[symbol] for symbol in self.shape)

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        rows, *columns = self.engine_shape(dims)
        if self.split == 1:
            width = columns[0] // size
            return [Block(self.hf, slice(0, rows), slice(rank * width, (rank + 1) * width))]
        if self.split is None:
            return [Block(self.hf, slice(0, rows))]
        return rows_of_rank([Block(self.hf, slice(0, rows))], rank, num_rows or rows // size)


@dataclass(frozen=True)
class Scalar(Rename):
    """A tensor without axes in the checkpoint, which is a vector of one number in the engine."""

    shape: tuple[str, ...] = ("one",)

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        return {self.hf: ()}

    def take_apart(self, tensor: torch.Tensor, dims: Dimensions) -> dict[str, torch.Tensor]:
        return {self.hf: tensor.reshape(())}


@dataclass(frozen=True)
class MergeQKV(Rule):
    """Query, key and value interleaved by query group: [the group's query heads, its key head, its value head] each.

    The three may be one HF tensor that holds them one below the other (Phi-3). ``bias`` makes them vectors.
    """

    query: str
    key: str
    value: str
    bias: bool = False

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        rows: dict[str, int] = {}
        for name, symbol in ((self.query, "query"), (self.key, "key"), (self.value, "key")):
            rows[name] = rows.get(name, 0) + dims[symbol]
        return {name: self._shape(count, dims) for name, count in rows.items()}

    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        return self._shape(dims["query"] + 2 * dims["key"], dims)

    def _shape(self, rows: int, dims: Dimensions) -> tuple[int, ...]:
        return (rows,) if self.bias else (rows, dims["hidden"])

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        head, query = dims["head"], dims["query"] // dims["groups"]
        key_start = dims["query"] if self.key == self.query else 0
        value_start = key_start + dims["key"] if self.value == self.key else 0
        blocks = []
        for group in range(dims["groups"]):
            blocks.append(Block(self.query, slice(group * query, (group + 1) * query)))
            for name, start in ((self.key, key_start), (self.value, value_start)):
                blocks.append(Block(name, slice(start + group * head, start + (group + 1) * head)))
        # With more ranks than groups the engine cuts through groups and gathers them again, so ranks take plain ranges.
        return rows_of_rank(blocks, rank, self.engine_shape(dims)[0] // size)


@dataclass(frozen=True)
class MergeGateUp(Rule):
    """The two halves of a SwiGLU's first layer: each rank holds [its rows of gate, its rows of up].

    Both may be one HF tensor that holds gate above up (Phi-3). ``inner`` names the feed-forward size. ``bias`` makes
    them vectors.
    """

    gate: str
    up: str
    inner: str = "ffn"
    bias: bool = False

    def hf_shapes(self, dims: Dimensions) -> dict[str, tuple[int, ...]]:
        if self.gate == self.up:
            return {self.gate: self.engine_shape(dims)}
        return dict.fromkeys((self.gate, self.up), self._shape(dims[self.inner], dims))

    def engine_shape(self, dims: Dimensions) -> tuple[int, ...]:
        return self._shape(2 * dims[self.inner], dims)

    def _shape(self, rows: int, dims: Dimensions) -> tuple[int, ...]:
        return (rows,) if self.bias else (rows, dims["hidden"])

    def blocks(self, dims: Dimensions, rank: int = 0, size: int = 1, num_rows: int | None = None) -> list[Block]:
        inner, part = dims[self.inner], dims[self.inner] // size
        up_start = inner if self.gate == self.up else 0
        gate = Block(self.gate, slice(rank * part, (rank + 1) * part))
        return [gate, Block(self.up, slice(up_start + rank * part, up_start + (rank + 1) * part))]


def rows_of_rank(blocks: Sequence[Block], rank: int, num_rows: int) -> list[Block]:
    """Rows ``[rank * num_rows, (rank + 1) * num_rows)`` of the stacked blocks; fewer where the blocks end before."""
    first, last = rank * num_rows, (rank + 1) * num_rows
    kept, row = [], 0
    for block in blocks:
        start, stop = max(first - row, 0), min(last - row, block.num_rows)
        if start < stop:
            kept.append(replace(block, rows=slice(block.rows.start + start, block.rows.start + stop)))
        row += block.num_rows
    return kept
