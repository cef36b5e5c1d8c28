"""The input of scoring, read and encoded in parts ahead of the model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.record_reader import RecordReader
from megatron_mixcpt.selection.samples import CandidateSample, make_samples, read_parts
from megatron_mixcpt.selection.settings import ScoreSettings


class PartEncoder:
    """Reads the input in parts and encodes them; finished parts are read and skipped."""

    def __init__(self, settings: ScoreSettings, sources: Sequence[Source], encoder: ChatEncoder):
        self._settings = settings
        self._sources = sources
        self._encoder = encoder
        self._readers = {kind: RecordReader(kind, chosen, settings.reading) for kind, chosen in settings.kinds.items()}
        self.sizes: list[int] = []
        """Rows of each part of the input; of all once :meth:`parts` has ended."""

    @property
    def notes(self) -> dict[str, Counter[str]]:
        """By kind, what reading did to records or did not use of them; of all once :meth:`parts` has ended."""
        return {kind: reader.counts.notes for kind, reader in self._readers.items()}

    def parts(self, finished: set[int]) -> Iterator[tuple[int, list[CandidateSample]]]:
        """Number and samples of each unfinished part; the next part is made while the caller works on one.

        Raises DataError where a record is bad, or where too many are, see :class:`ReadingSettings`.
        """
        unfinished = self._unfinished(finished)
        with ThreadPoolExecutor(1) as worker:
            ahead = worker.submit(next, unfinished, None)
            while (part := ahead.result()) is not None:
                ahead = worker.submit(next, unfinished, None)
                yield part
        for kind, reader in self._readers.items():
            self._settings.reading.check_rejects(f"--{kind}", reader.counts.records, reader.counts.rejects)

    def _unfinished(self, finished: set[int]) -> Iterator[tuple[int, list[CandidateSample]]]:
        for number, part in enumerate(read_parts(self._sources, self._readers)):
            self.sizes.append(len(part))
            if number not in finished:
                yield number, make_samples(part, self._encoder)
