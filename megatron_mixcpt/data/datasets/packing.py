"""Which samples make a global batch, and in which row of which rank each of them lies: pure arithmetic.

What is in a batch and the order of batches follow from the samples, the seed and the batch size alone, so that a run
may go on at another layout (:class:`BatchOrder`). How a batch lies in rows follows from the layout
(:func:`lay_out`): its samples are dealt to the data parallel ranks so that all have about equally many tokens, and each
rank's to as few rows as hold them, of about equal length. A microbatch is as long as its longest row, rounded up
(:func:`length_step`), so that little is padding at any number of ranks, and kernels meet few lengths.
"""

import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Lengths of microbatches are multiples of this many tokens, and at most so many different ones.
_STEP = 64
_MOST_LENGTHS = 64


class BatchOrder:
    """The global batches of a run: each epoch's samples in an order of its own, cut into batches.

    Args:
        samples: indices of the samples, or their number where they are 0, 1, 2, ...
        global_batch_size: samples of a batch; the last of an epoch has what is left.
        epochs: passes over the samples.
        seed: of the orders.
    """

    def __init__(self, samples: np.ndarray | int, *, global_batch_size: int, epochs: int, seed: int) -> None:
        self._samples = None if isinstance(samples, int) else samples
        self.num_samples = samples if isinstance(samples, int) else len(samples)
        self.global_batch_size = global_batch_size
        self.epochs = epochs
        self.seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return -(-self.num_samples // self.global_batch_size)

    @property
    def num_batches(self) -> int:
        """Global batches of the run."""
        return self.epochs * self.batches_per_epoch

    def batch(self, index: int) -> np.ndarray:
        """The samples of a batch, int64 [at most ``global_batch_size`` of them]."""
        epoch, place = divmod(index, self.batches_per_epoch)
        start = place * self.global_batch_size
        chosen = self._order(epoch)[start : start + self.global_batch_size].astype(np.int64)
        return chosen if self._samples is None else self._samples[chosen]

    def num_samples_before(self, index: int) -> int:
        """How many samples the batches before ``index`` hold."""
        epoch, place = divmod(index, self.batches_per_epoch)
        return epoch * self.num_samples + min(place * self.global_batch_size, self.num_samples)

    def _order(self, epoch: int) -> np.ndarray:
        """Places of the epoch's samples; only one epoch's are held, 4 bytes each."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
            self._epoch = epoch, order.astype(np.uint32)
        return self._epoch[1]


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """What a layout asks of rows."""

    row_length: int
    """The most positions of a row."""
    micro_batch_size: int = 1
    """Rows of a microbatch."""
    data_parallel_size: int = 1
    microbatches_multiple: int = 1
    """What each rank's number of microbatches is a multiple of."""
    length_step: int = _STEP
    """Lengths are multiples of it, or ``row_length``."""
    is_uniform: bool = False
    """Give all microbatches of a rank one length: pipeline stages then know what they get."""
    packing: bool = True
    """Lay several samples into a row."""


@dataclass(frozen=True)
class RankRows:
    """The microbatches of one data parallel rank, the longest first."""

    microbatches: tuple[tuple[tuple[int, ...], ...], ...]
    """For each its rows; for each row the indices of its samples, none for an empty row."""
    lengths: tuple[int, ...]
    """Positions of each row of each microbatch."""

    @property
    def num_places(self) -> int:
        """Positions of all rows, filled or not."""
        rows = (len(rows) for rows in self.microbatches)
        return sum(length * count for length, count in zip(self.lengths, rows, strict=True))


@dataclass
class Fill:
    """How full rows are, and how evenly the work lies on the ranks, added up over batches."""

    num_positions: int = 0
    num_places: int = 0
    slowest_places: int = 0
    """Of the rank with the most of each batch, times the number of ranks."""
    lengths: set[int] = field(default_factory=set)
    """Of microbatches."""

    def add(self, num_positions: int, ranks: Sequence[RankRows]) -> None:
        """Count a batch whose samples take ``num_positions``."""
        places = [rank.num_places for rank in ranks]
        self.num_positions += num_positions
        self.num_places += sum(places)
        self.slowest_places += max(places) * len(places)
        self.lengths.update(length for rank in ranks for length in rank.lengths)

    @property
    def filled(self) -> float:
        """The share of positions that hold a token."""
        return self.num_positions / max(self.num_places, 1)

    @property
    def balance(self) -> float:
        """The mean over the ranks of the positions that each computes, as a share of the slowest rank's."""
        return self.num_places / max(self.slowest_places, 1)


def length_step(row_length: int, divisor: int = 1) -> int:
    """What lengths of microbatches are rounded up to.

    A power of two from 64 on that leaves at most 64 different lengths, and a multiple of ``divisor``, which tensor
    parallelism asks for. Half a step is padding on average: less than one hundredth of the longest row.
    """
    step = _STEP
    while step * _MOST_LENGTHS < row_length:
        step *= 2
    return math.lcm(step, divisor)


def lay_out(samples: Sequence[int], lengths: Sequence[int], shape: RowShape) -> list[RankRows]:
    """Lay a batch into rows, for each data parallel rank.

    Args:
        samples: indices of the batch's samples.
        lengths: positions that each of ``samples`` takes, at most ``shape.row_length``.
        shape: what the layout asks for. Every rank gets the same number of microbatches.
    """
    longest_first = sorted(zip(lengths, samples, strict=True), reverse=True)
    dealt = _deal(longest_first, shape)
    rows_of = functools.partial(_rows, row_length=shape.row_length, packing=shape.packing)
    most = max(max(sum(length for length, _ in rank) for rank in dealt), 1)
    num_microbatches = -(-most // (shape.row_length * shape.micro_batch_size))
    while True:
        num_microbatches = -(-num_microbatches // shape.microbatches_multiple) * shape.microbatches_multiple
        rows = [rows_of(rank, num_microbatches * shape.micro_batch_size) for rank in dealt]
        if all(rank is not None for rank in rows):
            return [_microbatches(rank, shape) for rank in rows if rank is not None]
        num_microbatches += 1


def _deal(longest_first: list[tuple[int, int]], shape: RowShape) -> list[list[tuple[int, int]]]:
    """Each sample to the rank that has the fewest positions; without packing, equally many to each."""
    ranks: list[list[tuple[int, int]]] = [[] for _ in range(shape.data_parallel_size)]
    most = len(longest_first) if shape.packing else -(-len(longest_first) // shape.data_parallel_size)
    loads = [(0, rank) for rank in range(shape.data_parallel_size)]
    for item in longest_first:
        load, rank = loads[0]
        ranks[rank].append(item)
        if len(ranks[rank]) < most:
            heapq.heapreplace(loads, (load + item[0], rank))
        else:
            heapq.heappop(loads)
    return ranks


def _rows(
    longest_first: list[tuple[int, int]], num_rows: int, *, row_length: int, packing: bool
) -> list[tuple[int, list[int]]] | None:
    """(positions, samples) of each row: each sample into the emptiest row; None where a sample fits into none."""
    rows: list[tuple[int, list[int]]] = [(0, []) for _ in range(num_rows)]
    if not packing:
        filled = [(length, [sample]) for length, sample in longest_first]
        return filled + rows[len(filled) :] if len(filled) <= num_rows else None
    loads = [(0, row) for row in range(num_rows)]
    for length, sample in longest_first:
        load, row = loads[0]
        if load + length > row_length:
            return None
        rows[row][1].append(sample)
        heapq.heapreplace(loads, (load + length, row))
    return [(load, rows[row][1]) for load, row in loads]


def _microbatches(rows: list[tuple[int, list[int]]], shape: RowShape) -> RankRows:
    """Rows of similar length together, the longest first."""
    rows = sorted(rows, key=lambda row: (-row[0], row[1]))
    size = shape.micro_batch_size
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]
    step = shape.length_step
    lengths = [min(max(-(-group[0][0] // step), 1) * step, shape.row_length) for group in groups]
    if shape.is_uniform:
        lengths = [lengths[0]] * len(lengths)
    return RankRows(tuple(tuple(tuple(samples) for _, samples in group) for group in groups), tuple(lengths))
