"""Data files become rows, each with its line number, in memory that does not grow with the file.

A *row* is what the file holds for one record, not yet checked: the bytes of a JSON line, the object of a Parquet row,
or a plain text file's contents. :func:`parse` turns it into an object; ``records.to_record`` makes a record of that.
:func:`read_records` does all of it, for those who want records and not speed.
"""

import json
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, BinaryIO

from megatron_mixcpt.data.long_text import LONG_BYTES, LongText, load_json, load_json_keeping_long
from megatron_mixcpt.data.reading.compression import open_unpacked
from megatron_mixcpt.data.reading.sources import Source, find_sources
from megatron_mixcpt.data.reading.tables import arrow_blocks, parquet_blocks
from megatron_mixcpt.data.records import FIELDS_OF_KIND, BadRecord, FieldNames, Record, to_record
from megatron_mixcpt.errors import DataError

BLOCK_BYTES = 1 << 16  # small enough that what is read is still in the cache when it is parsed
UTF8_MARK = b"\xef\xbb\xbf"

Row = bytes | bytearray | dict[str, Any]


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
                yield to_record(kind, parse(source, row), names)
            except BadRecord as error:
                raise DataError(f"{source.path}:{number}: {error.detail}; mend or remove the line") from error


def read_blocks(
    source: Source,
    fields: Set[str] | None = None,
    start: int = 0,
    end: int | None = None,
    keep_long: bool = False,
) -> Iterator[list[Row]]:
    """The rows of a file, some at a time. Of a table only the columns named in ``fields`` are read; None means all.

    With ``keep_long`` the long strings of a table are :class:`LongText`. ``start`` and ``end`` bound a plain JSONL file
    by bytes (a line belongs to the range that it begins in) and a Parquet file by row groups; other files are read
    whole. Raises DataError where a file is cut short or damaged.
    """
    with _errors_name(source):
        if source.format == "parquet":
            yield from parquet_blocks(source, fields, start, end, keep_long)
        elif source.format == "arrow":
            yield from arrow_blocks(source, keep_long)
        else:
            with open_unpacked(source) as file:
                yield from [[_read_all(file)]] if source.format == "txt" else _line_blocks(source, file, start, end)


def is_blank(source: Source, row: Row) -> bool:
    """Whether a row is an empty line of a JSONL file, which stands for no record."""
    return source.format == "jsonl" and (not row or row.isspace())


def parse(source: Source, row: Row, keep_long: bool = False) -> Any:
    """The object that a row holds. With ``keep_long`` its long strings are :class:`LongText`. Raises BadRecord."""
    if isinstance(row, dict):
        return row
    if source.format == "txt":
        return {"text": _decoded(row, keep_long)}
    return parse_json(row, keep_long)


def parse_json(line: bytes | bytearray, keep_long: bool = False) -> Any:
    """The value of one line of JSON (see :func:`load_json`). Raises BadRecord."""
    try:
        return load_json_keeping_long(line) if keep_long and len(line) > LONG_BYTES else load_json(line)
    except UnicodeDecodeError as error:
        raise BadRecord("not_utf8", f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise BadRecord("invalid_json", f"invalid JSON at column {error.colno} ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise BadRecord("invalid_json", f"invalid JSON ({error})") from error


def _decoded(data: bytes | bytearray, keep_long: bool) -> str | LongText:
    """The contents of a plain text file."""
    start = len(UTF8_MARK) if data.startswith(UTF8_MARK) else 0
    try:
        if keep_long and len(data) > LONG_BYTES:
            return LongText(data, start, len(data), is_json=False)
        return data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not_utf8", f"byte {error.start + 1} is not UTF-8") from error


def _line_blocks(source: Source, file: BinaryIO, start: int, end: int | None) -> Iterator[list[bytes | bytearray]]:
    """The lines that begin between two places of a file, without their ends."""
    position = _next_line(file, start, end)
    if end is not None and position >= end:
        return
    for lines in _read_lines(file):
        sizes = [len(line) + 1 for line in lines]
        if position == 0:
            if lines[0].startswith(UTF8_MARK):
                lines[0] = lines[0].removeprefix(UTF8_MARK)
            if lines[0][:BLOCK_BYTES].lstrip().startswith(b"[") and ".json" in source.path.suffixes:
                way_out = "write one record a line, for example with: jq -c '.[]'"
                raise DataError(f"{source.path}: one JSON list, which cannot be read piece by piece; {way_out}")
        begins = position
        position += sum(sizes)
        if end is not None and position >= end:
            places = accumulate(sizes, initial=begins)
            yield [line for line, place in zip(lines, places, strict=False) if place < end]
            return
        yield lines


def _read_lines(file: BinaryIO) -> Iterator[list[bytes | bytearray]]:
    """Lines, some at a time. A long one is a bytearray, which grows without being copied."""
    rest = bytearray()
    while block := file.read(BLOCK_BYTES):
        lines: list[bytes | bytearray] = [*block.split(b"\n")]
        if len(lines) == 1:
            rest += block
            continue
        if rest:
            rest += lines[0]
            lines[0] = rest
        rest = bytearray(lines.pop())
        yield lines
    if rest:
        yield [rest]


def _read_all(file: BinaryIO) -> bytearray:
    content = bytearray()
    while block := file.read(BLOCK_BYTES):
        content += block
    return content


def _next_line(file: BinaryIO, start: int, end: int | None) -> int:
    """Move to the first line that begins at byte ``start`` or later, and return its place. Stops once past ``end``."""
    if start == 0:
        return 0
    position = file.seek(start - 1)
    while end is None or position < end:
        piece = file.readline(BLOCK_BYTES)
        position += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return position


@contextmanager
def _errors_name(source: Source) -> Iterator[None]:
    """Turn what the libraries say of a damaged file into one line that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source.path}: cannot be read to its end ({error}); copy the file again") from error


def record_fields(kind: str, names: FieldNames) -> frozenset[str]:
    """The top-level fields that a record of ``kind`` may use."""
    used = {getattr(names, field) for field in FIELDS_OF_KIND[kind]}
    return frozenset(used | {name.partition(".")[0] for name in used})
