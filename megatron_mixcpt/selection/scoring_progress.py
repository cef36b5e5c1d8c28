"""How far scoring has come, over all ranks."""

from types import TracebackType

from megatron_mixcpt.jobs.progress import Progress


class ScoringProgress:
    """Shows samples done of all samples, on one rank, with the time left. A context manager.

    All ranks work on the same part at a time: what this rank has done of its share stands for all ranks, until the part
    is finished.
    """

    def __init__(self, num_samples: int, num_done: int, dp_size: int):
        """``num_samples``: of the input; ``num_done``: of parts that are finished; ``dp_size``: ranks that share."""
        self._progress = Progress(num_samples, "score", "samples", num_done)
        self._dp_size = dp_size
        self._num_samples = self._num_sequences = self._seen = self._shown = 0

    def __enter__(self) -> "ScoringProgress":
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, traceback)

    def start_part(self, num_samples: int, num_sequences: int) -> None:
        """Samples of the next part, and the sequences that the model reads of them."""
        self._num_samples, self._num_sequences = num_samples, num_sequences
        self._seen = self._shown = 0

    def add_sequences(self, number: int) -> None:
        """Count sequences that this rank has scored."""
        self._seen += number
        share = min(1.0, self._seen * self._dp_size / max(self._num_sequences, 1))
        self._show(int(share * self._num_samples))

    def end_part(self) -> None:
        """All ranks have finished the part."""
        self._show(self._num_samples)

    def _show(self, number: int) -> None:
        self._progress.add(number - self._shown)
        self._shown = number
