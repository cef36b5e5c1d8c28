"""Which keys a query may see, as blocks of consecutive queries, for each of which ``attention.py`` calls a kernel."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MASKED_SCORE = -65504.0
"""Added to the score of a key that a query may not attend to; beside that of an allowed key, its exponential is 0.

Finite, for cuDNN's kernel had faults with infinities in a mask; the lowest of float16.
"""


class QueryBlock(NamedTuple):
    """Consecutive queries of this rank, and the keys that some of them may see."""

    queries: slice
    """Of this rank's."""
    keys: slice
    """Of the whole sequence's."""
    mask: Tensor | None = None
    """[b or 1, 1, queries, keys], bool, True = may attend, or what is added to the scores; None: see ``causal``."""
    causal: bool = False
    """The last query sees all keys of the block, each query before it one key less."""
    num_blocks: int = 1
    """Above 1, ``queries`` are this many blocks of equal length n, and block i sees the 2 n keys from its n-th on.

    The mask is that of one block then, [1, 1, n, 2 n], or of each, [b * num_blocks, 1, n, 2 n].
    """

    def in_parts(self, num_queries: int) -> Iterator["QueryBlock"]:
        """Blocks of at most ``num_queries`` queries that come to the same; several blocks in one stay as they are."""
        length = self.queries.stop - self.queries.start
        if self.num_blocks > 1 or length <= num_queries:
            yield self
            return
        for start in range(0, length, num_queries):
            stop = min(start + num_queries, length)
            queries = slice(self.queries.start + start, self.queries.start + stop)
            keys = slice(self.keys.start, self.keys.stop - (length - stop)) if self.causal else self.keys
            yield QueryBlock(queries, keys, None if self.mask is None else self.mask[:, :, start:stop], self.causal)

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its part of [b, np, sq, hn] and [b, ng, sk, hn] twice, [b * num_blocks, ...]."""
        query, key, value = query[:, :, self.queries], key[:, :, self.keys], value[:, :, self.keys]
        if self.num_blocks == 1:
            return query, key, value
        return _stacked(query, self.num_blocks), self._overlapping(key), self._overlapping(value)

    def put_back(self, context: Tensor) -> Tensor:
        """[b * num_blocks, np, n, hn] -> [b, np, num_blocks * n, hn]."""
        if self.num_blocks == 1:
            return context
        return context.unflatten(0, (-1, self.num_blocks)).transpose(1, 2).flatten(2, 3)

    def _overlapping(self, tensor: Tensor) -> Tensor:
        """[b, ng, (num_blocks + 1) n, hn] -> [b * num_blocks, ng, 2 n, hn], a copy: each with the one before."""
        length = tensor.size(2) // (self.num_blocks + 1)
        return torch.cat(
            [_stacked(tensor[:, :, :-length], self.num_blocks), _stacked(tensor[:, :, length:], self.num_blocks)], 2
        )


def _stacked(tensor: Tensor, num_blocks: int) -> Tensor:
    """[b, heads, num_blocks * n, hn] -> [b * num_blocks, heads, n, hn], a view where b is 1."""
    return tensor.unflatten(2, (num_blocks, -1)).transpose(1, 2).flatten(0, 1)
