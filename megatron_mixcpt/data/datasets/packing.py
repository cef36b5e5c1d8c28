"""Which samples make a global batch, and in which row of the batch each of them lies: pure arithmetic.

A global batch is always ``global_batch_size`` samples, whether they are packed or not; packing only lays several of
them into one row. So a packed run takes the same steps as an unpacked one. The engine wants the same number of rows in
every batch: that of the fullest one, the others being filled up with empty rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PackedBatches:
    """The rows of every global batch of a run."""

    num_rows: int
    """Rows of each batch."""
    batches: tuple[tuple[tuple[int, ...], ...], ...]
    """For each batch its rows, at most ``num_rows``; for each row the indices of its samples."""

    @property
    def num_batches(self) -> int:
        """Global batches of the run, the last one of each epoch with what is left."""
        return len(self.batches)

    def row(self, index: int) -> tuple[int, ...]:
        """Samples of the run's row ``index``, rows being counted through all batches; () for an empty row."""
        batch = self.batches[index // self.num_rows]
        row = index % self.num_rows
        return batch[row] if row < len(batch) else ()


def pack_batches(
    lengths: Sequence[int],
    *,
    row_length: int,
    global_batch_size: int,
    epochs: int,
    seed: int,
    packing: bool,
    rows_multiple: int = 1,
) -> PackedBatches:
    """Shuffle the samples of each epoch, cut them into batches, and lay each batch into rows.

    Args:
        lengths: positions that each sample takes, at most ``row_length``.
        row_length: positions of a row.
        global_batch_size: samples of a batch; the last of an epoch has what is left.
        epochs: passes over the samples, each in another order.
        seed: of the orders.
        packing: lay samples into rows first-fit, the longest first; otherwise one sample a row.
        rows_multiple: the number of rows is a multiple of it (microbatch size times data parallel ranks).
    """
    batches = []
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(lengths)).tolist()
        for start in range(0, len(order), global_batch_size):
            samples = order[start : start + global_batch_size]
            rows = _first_fit(samples, lengths, row_length) if packing else [(sample,) for sample in samples]
            batches.append(tuple(rows))
    fullest = max((len(rows) for rows in batches), default=1)
    return PackedBatches(-(-fullest // rows_multiple) * rows_multiple, tuple(batches))


def _first_fit(samples: list[int], lengths: Sequence[int], row_length: int) -> list[tuple[int, ...]]:
    """Each sample, the longest first, into the first row that has room for it."""
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -lengths[sample]):
        place = next((index for index, left in enumerate(room) if left >= lengths[sample]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_length)
        rows[place].append(sample)
        room[place] -= lengths[sample]
    return [tuple(row) for row in rows]
