"""Files become records, and what gives none is counted by name: the one way in which every tool reads records.

A worker process makes a reader of its own from the same settings and reads ranges of files; the counts of several
readers are added up.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_mixcpt.data.reading.field_names import record_fields
from megatron_mixcpt.data.reading.input_format import Row, Source
from megatron_mixcpt.data.reading.readers import is_blank, parse, read_blocks
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_maker import Dropped, RecordMaker
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.records import BadRecord, Record
from megatron_mixcpt.errors import DataError


class Reject(NamedTuple):
    """A row that gave no record."""

    reason: str
    """A key of ``REJECT_REASONS`` (the row is bad) or of ``DROP_REASONS`` (it is not wanted)."""
    detail: str


@dataclass
class ReadCounts:
    """What became of rows; counts of several workers are added."""

    lines: int = 0
    """Rows, blank ones included."""
    records: int = 0
    """Rows that are not blank, those that gave no record included."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Rows that gave no record, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """What was done to records that are used, by name."""

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            self.lines + other.lines,
            self.records + other.records,
            self.rejects + other.rejects,
            self.notes + other.notes,
        )


class RecordReader:
    """Reads records of one kind."""

    def __init__(
        self,
        kind: str,
        kind_settings: KindSettings,
        reading_settings: ReadingSettings,
        keeps_equal_sides: bool = False,
    ):
        """``keeps_equal_sides``: pairs without a preference are records, too, for a user of the chosen text alone."""
        self._maker = RecordMaker(kind, kind_settings, reading_settings.rules, keeps_equal_sides)
        self._fields = record_fields(kind, kind_settings.names) | self._maker.extra_fields
        self._stops = reading_settings.on_bad_record == "error"
        self._keeps_long = kind == "cpt" and not self._maker.extra_fields
        self.counts = ReadCounts(notes=self._maker.notes)
        """Of all that was read so far; complete once an iterator has ended."""

    def records(self, sources: Iterable[Source]) -> Iterator[tuple[Source, int, Record | Reject]]:
        """The records of whole files, in order, each with its line in the file, from 1.

        Raises DataError, naming file and line, at the first bad record where ``--on-bad-record`` says so.
        """
        for source in sources:
            for line, record in self.records_of_range(source):
                yield source, line, record

    def records_of_range(
        self, source: Source, start: int = 0, end: int | None = None
    ) -> Iterator[tuple[int, Record | Reject]]:
        """The records of a range of a file, in units of its format, each with its line *within the range*, from 1.

        ``source.format.lines_before(source, start)`` gives the lines before the range; finding it reads the file up
        to there. Raises DataError as :meth:`records` does. What is read is let go as early as can be, for a single row
        may be 100 MB.
        """
        line = 0
        for rows in read_blocks(source, self._fields, start, end, self._keeps_long):
            for place in range(len(rows)):
                line += 1
                self.counts.lines += 1
                if not is_blank(source, rows[place]):
                    yield line, self._record(source, start, line, rows, place)

    def take_counts(self) -> ReadCounts:
        """The counts since this was last called."""
        counts = self.counts
        self._maker.notes = Counter()
        self.counts = ReadCounts(notes=self._maker.notes)
        return counts

    def _record(self, source: Source, start: int, line: int, rows: list[Row], place: int) -> Record | Reject:
        row, rows[place] = rows[place], b""  # nothing else holds the row while it becomes a record
        self.counts.records += 1
        try:
            return self._maker.make(parse(source, row, self._keeps_long), source.format.fills_nulls)
        except (BadRecord, Dropped) as error:
            return self.reject(source, start, line, error)

    def reject(self, source: Source, start: int, line: int, error: BadRecord | Dropped) -> Reject:
        """Count a row that gives no record that can be used; ``line`` is that in the range from ``start``.

        Raises DataError, naming file and line, for a bad one where ``--on-bad-record`` says so.
        """
        if self._stops and isinstance(error, BadRecord):
            line += source.format.lines_before(source, start) if start else 0
            way_out = "fix it, or continue without such records with --on-bad-record skip"
            raise DataError(f"{source.path}:{line}: {error.detail}; {way_out}") from error
        self.counts.rejects[error.reason] += 1
        return Reject(error.reason, error.detail)
