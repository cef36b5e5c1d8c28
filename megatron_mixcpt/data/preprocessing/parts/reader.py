"""The samples of a part, in batches; what gives no sample is written to the part's rejects on the way."""

import json
from collections.abc import Iterator
from typing import TextIO

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.preprocessing.decontaminate import read_test_sets
from megatron_mixcpt.data.preprocessing.parts.files import SegmentCounts
from megatron_mixcpt.data.preprocessing.sample_maker import Sample, SampleMaker
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.field_names import record_fields
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part, Segment
from megatron_mixcpt.data.reading.readers import Row, is_blank, parse, read_blocks
from megatron_mixcpt.data.reading.record_maker import Dropped
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.errors import DataError

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

    def take_notes(self, dataset: str) -> dict[str, int]:
        """What was done to the samples of a dataset since this was last called, counted by name."""
        notes = dict(self._makers[dataset].notes)
        self._makers[dataset].notes.clear()
        return notes

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
        maker = self._makers[source.dataset]
        keep_long = source.kind == "cpt" and not maker.extra_fields
        for line, rows, place in self._rows(source, segment, counts, keep_long):
            try:
                sample = maker.make(parse(source, _taken(rows, place), keep_long), source.format.fills_nulls)
            except (BadRecord, Dropped) as error:
                self._reject(source, segment, index, line, error, rejects)
                continue
            counts.samples += 1
            yield line, sample
            del sample

    def _rows(
        self, source: Source, segment: Segment, counts: SegmentCounts, keep_long: bool
    ) -> Iterator[tuple[int, list[Row], int]]:
        """Each record's line, and where its row is: a list and the place in it."""
        fields = record_fields(source.kind, self._settings.datasets[source.dataset].names)
        fields |= self._makers[source.dataset].extra_fields
        for rows in read_blocks(source, fields, segment.start, segment.end, keep_long):
            for place in range(len(rows)):
                counts.lines += 1
                if is_blank(source, rows[place]):
                    continue
                counts.records += 1
                yield counts.lines, rows, place

    def _reject(
        self,
        source: Source,
        segment: Segment,
        index: int,
        line: int,
        error: BadRecord | Dropped,
        rejects: TextIO,
    ) -> None:
        if isinstance(error, BadRecord) and self._settings.reading.on_bad_record == "error":
            line += source.format.lines_before(source, segment.start) if segment.start else 0
            way_out = "fix it, or continue without such records with --on-bad-record skip"
            raise DataError(f"{source.path}:{line}: {error.detail}; {way_out}") from error
        record = {"segment": index, "line": line, "reason": error.reason, "detail": error.detail}
        rejects.write(json.dumps(record) + "\n")


def _taken(rows: list[Row], place: int) -> Row:
    """Take a row out of its list, so that nothing else holds it while it becomes a sample."""
    row, rows[place] = rows[place], b""
    return row
