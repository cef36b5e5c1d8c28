"""Sliding windows in blocks: a query sees the last w keys up to its own, and no s x s mask exists.

The first w queries are plain causal attention. The others are cut into blocks of n queries, each of which sees the n
keys of its own block and the w keys before it, so that time and memory grow with s * w and not with s * s. Up to w =
``LONGEST``, n is w, and all blocks go through the kernel as a batch, with two copies of the keys and values. Above it,
each is a call of its own on a part of the keys, without a copy. All blocks and all layers share one mask of n rows.

Under a mask of documents each block takes its part of that mask, limited to the window: s * (n + w) numbers in all,
made once for a mask and shared by all layers with the same window.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.query_blocks import MASKED_SCORE, QueryBlock

ALIGNMENT = 16
"""Blocks are multiples of this, for the memory-efficient kernel copies masks whose rows are not aligned."""

LONGEST = 1024
"""Of blocks, in queries: what bounds the mask."""

_OF_MASKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""The blocks of each mask of documents that is in use, by the window and the chunks that they were made for."""


class Chunk(NamedTuple):
    """Consecutive queries of this rank, ``num_queries`` of them, and the place of the first in the whole sequence."""

    start: int
    num_queries: int
    position: int


class _Piece(NamedTuple):
    """Queries ``start`` to ``stop`` of a chunk, in blocks that see ``before`` keys before their own."""

    start: int
    stop: int
    before: int
    num_blocks: int = 1


def window_of_layer(config: TransformerConfig, layer_number: int) -> int | None:
    """Number of keys that a query of a layer sees, itself included; None: all up to its own.

    ``config.window_size`` counts keys before the query's own and after it, -1 being all; ``window_attn_skip_freq``
    says which layers have it. Layers are counted from 1.

    Raises ConfigError for a window that reaches past the query's own key: attention here is causal.
    """
    if not is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number):
        return None
    before, after = config.window_size
    if after > 0:
        raise ConfigError(f"window_size {config.window_size} looks ahead: causal attention needs (N, 0)")
    return None if before < 0 else before + 1


def window_blocks(
    chunks: Sequence[Chunk], window: int, documents: Tensor | None, query: Tensor
) -> Sequence[QueryBlock]:
    """Blocks that cover the chunks' queries in order.

    Args:
        chunks: this rank's queries, without a gap.
        window: number of keys that a query sees, itself included.
        documents: [b or 1, 1, queries, keys], which keys each query may see apart from the window, the future being
            excluded: bool, True = may attend, or what is added to the scores. None: all up to its own.
        query: [queries, b, ...], for its dtype and device.
    """
    if documents is None:
        return [block for chunk in chunks for block in _blocks_of(chunk, window, None, query)]
    if documents.size(0) != query.size(1):
        documents = documents.expand(query.size(1), -1, -1, -1)
    made = _OF_MASKS.setdefault(documents, {})
    key = (window, *chunks)
    if key not in made:
        made[key] = [block for chunk in chunks for block in _blocks_of(chunk, window, documents, query)]
    return made[key]


def _blocks_of(chunk: Chunk, window: int, documents: Tensor | None, query: Tensor) -> Iterator[QueryBlock]:
    for piece in _pieces(chunk, window):
        queries = slice(chunk.start + piece.start, chunk.start + piece.stop)
        keys = slice(chunk.position + piece.start - piece.before, chunk.position + piece.stop)
        reaches_all = keys.stop - keys.start <= window
        if documents is None and reaches_all:
            yield QueryBlock(queries, keys, causal=True)
        elif documents is not None and reaches_all:
            yield QueryBlock(queries, keys, documents[:, :, queries, keys].clone())  # a view would keep the mask alive
        else:
            band = _band_of(piece, window, query)
            mask = band if documents is None else _limited(documents[:, :, queries, keys], band, piece.num_blocks)
            yield QueryBlock(queries, keys, mask, num_blocks=piece.num_blocks)


def _pieces(chunk: Chunk, window: int) -> Iterator[_Piece]:
    """First the queries that see all keys before them, last what is left of a block."""
    before, size = _lengths(window)
    start = min(max(window - chunk.position, 0), chunk.num_queries)
    if start:
        yield _Piece(0, start, chunk.position)
    if size < before:
        for first in range(start, chunk.num_queries, size):
            yield _Piece(first, min(first + size, chunk.num_queries), min(before, chunk.position + first))
        return
    whole = min(
        max(before - chunk.position, start), chunk.num_queries
    )  # from here on there are enough keys before a block
    if whole > start:
        yield _Piece(start, whole, chunk.position + start)
    num_blocks, rest = divmod(chunk.num_queries - whole, size)
    if num_blocks:
        yield _Piece(whole, chunk.num_queries - rest, before, num_blocks)
    if rest:
        yield _Piece(chunk.num_queries - rest, chunk.num_queries, before)


def _lengths(window: int) -> tuple[int, int]:
    """Keys that a block sees before its own, and its queries."""
    before = -(-window // ALIGNMENT) * ALIGNMENT
    return before, min(before, LONGEST)


def _band_of(piece: _Piece, window: int, query: Tensor) -> Tensor:
    """[1, 1, queries, keys] of each of the piece's blocks, a view of the mask that all share."""
    before, _ = _lengths(window)
    rows, first = (piece.stop - piece.start) // piece.num_blocks, before - piece.before
    return _band(window, query.dtype, query.device)[:, :, :rows, first : before + rows]


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # or a model that is evaluated first would leave a mask that training cannot save
def _band(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of a block that has enough keys before it, [1, 1, queries, keys]."""
    before, size = _lengths(window)
    places = torch.arange(before + size, device=device)
    distance = places[before:, None] - places
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(1, 1, *hidden.shape, dtype=dtype, device=device).masked_fill(hidden, MASKED_SCORE)


def _limited(documents: Tensor, band: Tensor, num_blocks: int) -> Tensor:
    """The mask of documents, [b, 1, num_blocks * n, keys], within the window: [b * num_blocks, 1, n, 2 n]."""
    if num_blocks > 1:
        size = band.size(2)
        blocks = [documents[:, :, i * size : (i + 1) * size, i * size : (i + 2) * size] for i in range(num_blocks)]
        documents = torch.stack(blocks, dim=1).flatten(0, 1)
    if documents.dtype == torch.bool:
        return documents & (band == 0)
    return documents.masked_fill(band != 0, MASKED_SCORE)
