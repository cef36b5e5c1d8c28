"""Data files become rows, each with its line number, in memory that does not grow with the file.

A *row* is what the file holds for one record, not yet checked. :func:`parse` turns it into an object, of which
``rows/make_record.py`` makes a record. :func:`read_records` does all of it, for those who want records and not speed.
How a format does this is in ``formats/``.
"""

import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

from megatron_mixcpt.data.reading.field_names import FieldNames, record_fields
from megatron_mixcpt.data.reading.input_format import Row, Source
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import BadRecord, Record
from megatron_mixcpt.errors import DataError


def read_records(
    kind: str, paths: list[str], names: FieldNames | None = None, flag: str | None = None
) -> Iterator[Record]:
    """The records of files, folders and globs, in order. ``flag`` is what the paths were given to, if not ``--kind``.

    Raises DataError, naming file and line, at the first that cannot be read.
    """
    names = names or FieldNames()
    for source in find_sources(flag or kind, paths):
        for number, row in enumerate(
            (row for rows in read_blocks(source, record_fields(kind, names)) for row in rows), start=1
        ):
            if is_blank(source, row):
                continue
            try:
                yield to_record(kind, parse(source, row), names, fills_nulls=source.format.fills_nulls)
            except BadRecord as error:
                raise DataError(f"{source.path}:{number}: {error.detail}; fix or remove the line") from error


def read_blocks(
    source: Source,
    fields: Set[str] | None = None,
    start: int = 0,
    end: int | None = None,
    keep_long: bool = False,
) -> Iterator[list[Row]]:
    """The rows of a file, some at a time. Of a table only the columns named in ``fields`` are read; None means all.

    With ``keep_long`` the long strings of a table are ``LongText``. ``start`` and ``end`` bound a range of the file, in
    units of its format. Raises DataError where the file is incomplete or damaged.
    """
    with _errors_name(source):
        yield from source.format.read(source, fields, start, end, keep_long)


def is_blank(source: Source, row: Row) -> bool:
    """Whether a row stands for no record, as an empty line of a JSONL file does."""
    return source.format.is_blank(row)


def parse(source: Source, row: Row, keep_long: bool = False) -> Any:
    """The object that a row holds. With ``keep_long`` its long strings are ``LongText``. Raises BadRecord."""
    return source.format.parse(row, keep_long)


@contextmanager
def _errors_name(source: Source) -> Iterator[None]:
    """Turn what the libraries say of a damaged file into one line that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source.path}: cannot be read to its end ({error}); copy the file again") from error
