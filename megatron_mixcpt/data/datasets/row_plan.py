"""The rows of every global batch of a run: which batches there are, and how each lies in rows at this layout.

Nothing is worked out before it is asked for: a batch is laid into rows in less than a millisecond.
"""

from typing import NamedTuple, Protocol

import numpy as np

from megatron_mixcpt.data.datasets.packing import BatchOrder, Fill, RankRows, RowShape, lay_out

_KEPT = 4  # batches whose layout is kept: those that the data loader's workers are ahead


class HasPositions(Protocol):
    """Samples of known length."""

    def document_positions(self, samples: np.ndarray) -> np.ndarray:
        """Places that each document of these samples takes in a row, int64 [samples, documents of each]."""


class LaidOut(NamedTuple):
    """A batch in rows."""

    ranks: list[RankRows]
    """For each data parallel rank."""
    num_positions: int
    """That hold a token, over all ranks."""
    num_positions_squared: int
    """The sum of the squares of the documents' lengths, which attention costs."""


class RowPlan:
    """The rows of the batches of ``order``.

    Args:
        samples: tells their lengths.
        order: the batches.
        shape: what the layout asks of rows.
    """

    def __init__(self, samples: HasPositions, order: BatchOrder, shape: RowShape) -> None:
        self.order = order
        self.shape = shape
        self._samples = samples
        self._kept: dict[int, LaidOut] = {}

    def batch(self, number: int) -> LaidOut:
        """A batch in rows."""
        if number not in self._kept:
            if len(self._kept) == _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self._lay_out(number)
        return self._kept[number]

    def num_microbatches(self, batch: int) -> int:
        """Of each rank."""
        return len(self.batch(batch).ranks[0].lengths)

    def fill(self, num_batches: int) -> Fill:
        """How full the rows of the first so many batches are."""
        fill = Fill()
        for number in range(min(num_batches, self.order.num_batches)):
            batch = self.batch(number)
            fill.add(batch.num_positions, batch.ranks)
        return fill

    def _lay_out(self, batch: int) -> LaidOut:
        samples = self.order.batch(batch)
        documents = self._samples.document_positions(samples)
        ranks = lay_out(samples.tolist(), documents.sum(axis=1).tolist(), self.shape)
        return LaidOut(ranks, int(documents.sum()), int((documents**2).sum()))
