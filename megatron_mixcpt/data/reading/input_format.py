"""What an input format must say of itself (:class:`InputFormat`), and an input file (:class:`Source`)."""

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megatron_mixcpt.data.dataset_names import dataset_name
from megatron_mixcpt.data.records import KINDS, BadRecord

Row = bytes | bytearray | dict[str, Any] | BadRecord
"""What a file holds for one record, not yet checked: a line's bytes, a text file's contents, a table's row, or why the
table's row cannot be read."""

COMPRESSION_RATIO = 4
"""About how many bytes one byte of a compressed file stands for."""


class FileRange(NamedTuple):
    """A range of a file that can be read alone, in units of the format."""

    start: int
    end: int | None
    """None: to the end of the file."""
    weight: int
    """Bytes of unpacked input, about."""


@dataclass(frozen=True)
class Source:
    """One input file."""

    kind: str
    path: Path
    format: "InputFormat"
    compression: str
    """``.gz``, ``.bz2``, ``.zst`` or nothing."""
    size: int
    """In bytes, as it lies on disk."""
    name: str = ""
    """Of the named group of files that it belongs to; empty: of none."""

    @property
    def dataset(self) -> str:
        """What the dataset of its samples is called: ``cpt``, or ``cpt.law`` for files of the name ``law``."""
        return dataset_name(self.kind, self.name)

    def stamp(self) -> list[Any]:
        """What tells the file, as it is now, from another: dataset, path, size in bytes and time of change."""
        return [self.dataset, str(self.path), self.size, self.path.stat().st_mtime_ns]

    @property
    def unpacked_bytes(self) -> int:
        """The file's size once unpacked, about; never 0."""
        is_packed = bool(self.compression) or self.format.is_packed
        return self.size * (COMPRESSION_RATIO if is_packed else 1) + 1


class InputFormat:
    """Base of all formats. A subclass sets ``name`` and ``suffixes`` and defines :meth:`read`."""

    name: str
    suffixes: tuple[str, ...]
    """Of file names, in lower case."""
    is_compressible = False
    """Whether files may be compressed as a whole (``.gz``, ``.bz2``, ``.zst``)."""
    is_packed = False
    """Whether the format compresses its contents."""
    fills_nulls = False
    """Whether each object of a column has every key of the column, with null where the data have none."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of record that such files may hold."""

    def has_name(self, name: str) -> bool:
        """Whether a file of this name, less the suffix of a compression, is of this format."""
        return Path(name).suffix.lower() in self.suffixes

    def read(
        self, source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
    ) -> Iterator[list[Row]]:
        """The rows of a range that :meth:`ranges` gave, some at a time.

        Args:
            source: the file.
            fields: top-level fields to read, None for all; a format that cannot leave fields out reads all.
            start: of the range; 0 for the file's start.
            end: of the range; None for the file's end.
            keep_long: hand on long strings as :class:`~megatron_mixcpt.data.long_text.LongText`.

        Raises OSError or EOFError where the file is damaged.
        """
        raise NotImplementedError

    def parse(self, row: Row, keep_long: bool) -> Any:
        """The object that a row holds. Raises BadRecord."""
        if isinstance(row, BadRecord):
            raise row
        return row

    def is_blank(self, row: Row) -> bool:
        """Whether a row stands for no record."""
        return False

    def ranges(self, source: Source, range_bytes: int) -> list[FileRange]:
        """The file in ranges of about ``range_bytes`` unpacked bytes; a single one where it cannot be split.

        Raises DataError where the file cannot be read.
        """
        return [FileRange(0, None, source.unpacked_bytes)]

    def lines_before(self, source: Source, start: int) -> int:
        """How many rows of the file, blank ones included, lie before the range that begins at ``start``."""
        return 0
