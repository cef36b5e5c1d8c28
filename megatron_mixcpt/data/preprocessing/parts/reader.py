"""The samples of a part, in batches; what gives no sample is written to the part's rejects on the way."""

import json
from collections.abc import Iterator
from typing import TextIO

from megatron_mixcpt.data.dataset_names import kind_of
from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.preprocessing.decontaminate import read_test_sets
from megatron_mixcpt.data.preprocessing.parts.files import SegmentCounts
from megatron_mixcpt.data.preprocessing.sample_maker import Sample, SampleMaker
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part, Segment
from megatron_mixcpt.data.reading.record_maker import Dropped
from megatron_mixcpt.data.reading.record_reader import RecordReader, Reject
from megatron_mixcpt.data.records import BadRecord

BATCH_CHARACTERS = 1 << 17  # small enough that texts and tokens are still in the cache when they are used next
BATCH_TEXTS = 1024

Batch = list[tuple[int, Sample]]
"""Lines, counted within a segment from 1, and their samples. Only the last is perhaps a long text."""


class PartReader:
    """Reads parts. What it holds is let go as early as can be, for a single row may be 100 MB."""

    def __init__(self, settings: PreprocessSettings, sources: list[Source]):
        self._settings = settings
        self._sources = sources
        test_sets = None
        if settings.decontaminate:
            test_sets = read_test_sets(list(settings.decontaminate), settings.decontaminate_words)
        self._makers = {name: SampleMaker(name, settings, test_sets) for name in settings.datasets}
        self._readers = {
            name: RecordReader(kind_of(name), chosen, settings.reading, keeps_equal_sides=True)
            for name, chosen in settings.datasets.items()
        }

    def take_notes(self, dataset: str) -> dict[str, int]:
        """What was done to the samples of a dataset since this was last called, counted by name."""
        return dict(self._readers[dataset].take_counts().notes)

    def batches(self, part: Part, segments: list[SegmentCounts], rejects: TextIO) -> Iterator[Batch]:
        """The samples of a part. Appends counts to ``segments``, one for each segment of the part.

        Raises DataError at the first bad record where the settings say so.
        """
        for index, segment in enumerate(part.segments):
            segments.append(SegmentCounts())
            batch, size = [], 0
            for line, sample in self._samples(index, segment, segments[-1], rejects):
                batch.append((line, sample))
                size += len(sample.text)
                is_full = size >= BATCH_CHARACTERS or len(batch) >= BATCH_TEXTS or isinstance(sample.text, LongText)
                del sample
                if is_full:
                    yield batch
                    batch, size = [], 0
            if batch:
                yield batch

    def _samples(
        self, index: int, segment: Segment, counts: SegmentCounts, rejects: TextIO
    ) -> Iterator[tuple[int, Sample]]:
        source = self._sources[segment.source]
        reader, maker = self._readers[source.dataset], self._makers[source.dataset]
        lines_before = reader.counts.lines
        for line, record in reader.records_of_range(source, segment.start, segment.end):
            counts.records += 1
            if not isinstance(record, Reject):
                try:
                    sample = maker.make(record)
                except (BadRecord, Dropped) as error:
                    record = reader.reject(source, segment.start, line, error)
                else:
                    counts.samples += 1
                    yield line, sample
                    del sample, record
                    continue
            rejected = {"segment": index, "line": line, "reason": record.reason, "detail": record.detail}
            rejects.write(json.dumps(rejected) + "\n")
        counts.lines = reader.counts.lines - lines_before
