"""Batches of sequences of similar length, so that little of a batch is padding. Needs no model and no ranks.

Batches are as long as one of a few lengths, eight from each power of two to the next: attention kernels of cuDNN are
planned anew for each shape, and so many lengths cost less than an eighth of the tokens in padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

IGNORED = -1
"""The label of a token whose log-probability is not wanted."""
MAX_PADDING = 0.08
"""The largest share of a batch's places that may be padding, beside what rounds the length of each row."""


@dataclass(frozen=True, eq=False)
class ScoredSequence:
    """Tokens, int32 [n], of which the last ``num_scored`` are to be predicted from those before them."""

    tokens: np.ndarray
    num_scored: int

    @property
    def num_inputs(self) -> int:
        """Tokens that the model reads: all but the last."""
        return len(self.tokens) - 1


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows of tokens, padded at their ends, where causal attention does not look."""

    places: tuple[int, ...]
    """The sequence of each row, as an index into the list that the batch was made from."""
    tokens: np.ndarray
    """int64 [b, s]; padding is 0."""
    labels: np.ndarray
    """int64 [b, s]: the next token, ``IGNORED`` where it is not scored."""
    length: int
    """Tokens of the longest row, without padding."""


def idle_batch() -> TokenBatch:
    """One row that is no sequence's: for a rank without a batch, where the others cannot run without it."""
    shape = (1, padded_length(1))
    return TokenBatch((), np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64), 1)


def padded_length(num_tokens: int) -> int:
    """The length of a batch whose longest row has ``num_tokens``: less than an eighth more, or than 8 more."""
    step = max(8, (1 << (num_tokens - 1).bit_length()) // 16)
    return -(-num_tokens // step) * step


def plan_batches(
    lengths: Sequence[int],
    max_tokens: int,
    max_padding: float = MAX_PADDING,
    kind_of: Callable[[int], object] = lambda length: None,
) -> list[list[int]]:
    """Places of sequences, batch by batch, the longest sequences first.

    A batch has at most ``max_tokens`` places (a longer sequence is a batch alone), of which at most the share
    ``max_padding`` is padding beyond what brings each row to its :func:`padded_length`. Lengths of which ``kind_of``
    says different things share no batch. The plan depends only on the arguments.
    """
    padded = [padded_length(length) for length in lengths]
    batches: list[list[int]] = []
    num_tokens = 0
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        longest = padded[batches[-1][0]] if batches else 0
        size = longest * (len(batches[-1]) + 1) if batches else 0
        fits = batches and size <= max_tokens and num_tokens + padded[place] >= (1 - max_padding) * size
        if not (fits and kind_of(lengths[batches[-1][0]]) == kind_of(lengths[place])):
            batches.append([])
            num_tokens = 0
        batches[-1].append(place)
        num_tokens += padded[place]
    return batches


def make_batch(sequences: Sequence[ScoredSequence], places: Sequence[int]) -> TokenBatch:
    """The batch of the sequences at ``places``."""
    length = max(sequences[place].num_inputs for place in places)
    shape = (len(places), padded_length(length))
    tokens, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for row, place in enumerate(places):
        sequence = sequences[place]
        first = sequence.num_inputs - sequence.num_scored
        tokens[row, : sequence.num_inputs] = sequence.tokens[:-1]
        labels[row, first : sequence.num_inputs] = sequence.tokens[first + 1 :]
    return TokenBatch(tuple(places), tokens, labels, length)
