"""Data files become rows, each with its line number, in memory that does not grow with the file.

A *row* is what the file holds for one record, not yet checked: the bytes of a JSON line, the object of a Parquet row,
or a plain text file's contents. :func:`parse` turns it into an object; ``records.to_record`` makes a record of that.
:func:`read_records` does all of it, for those who want records and not speed.
"""

import json
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any, BinaryIO

import orjson

from megatron_mixcpt.data.compression import open_unpacked
from megatron_mixcpt.data.records import FIELDS_OF_KIND, BadRecord, FieldNames, Record, to_record
from megatron_mixcpt.data.sources import Source, find_sources
from megatron_mixcpt.data.tables import arrow_blocks, parquet_blocks
from megatron_mixcpt.errors import DataError

BLOCK_BYTES = 1 << 20
UTF8_MARK = b"\xef\xbb\xbf"

Row = bytes | dict[str, Any]


def read_records(kind: str, paths: list[str], names: FieldNames | None = None) -> Iterator[Record]:
    """The records of files, folders and globs, in order.

    Raises DataError, naming file and line, at the first that cannot be read.
    """
    names = names or FieldNames()
    for source in find_sources(kind, paths):
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
    source: Source, fields: Set[str] | None = None, start: int = 0, end: int | None = None
) -> Iterator[list[Row]]:
    """The rows of a file, some at a time. Of a table only the columns named in ``fields`` are read; None means all.

    ``start`` and ``end`` bound a plain JSONL file by bytes (a line belongs to the range that it begins in) and a
    Parquet file by row groups; other files are read whole. Raises DataError where a file is cut short or damaged.
    """
    with _errors_name(source):
        if source.format == "parquet":
            yield from parquet_blocks(source, fields, start, end)
        elif source.format == "arrow":
            yield from arrow_blocks(source)
        else:
            with open_unpacked(source) as file:
                yield from [[file.read()]] if source.format == "txt" else _line_blocks(source, file, start, end)


def is_blank(source: Source, row: Row) -> bool:
    """Whether a row is an empty line of a JSONL file, which stands for no record."""
    return source.format == "jsonl" and row.isspace()


def parse(source: Source, row: Row) -> Any:
    """The object that a row holds. Raises BadRecord."""
    if isinstance(row, dict):
        return row
    return {"text": _decoded(row)} if source.format == "txt" else parse_json(row)


def parse_json(line: bytes) -> Any:
    """The value of one line of JSON. Raises BadRecord.

    orjson is the fast and strict way. What it refuses gets a second try with Python's own parser, which takes what
    Python has always taken (NaN, huge integers, lone surrogates; the last are found and rejected later).
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(_decoded(line.rstrip()))
    except json.JSONDecodeError as error:
        raise BadRecord("invalid_json", f"invalid JSON at column {error.colno} ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise BadRecord("invalid_json", f"invalid JSON ({error})") from error


def _decoded(data: bytes) -> str:
    try:
        return data.removeprefix(UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("not_utf8", f"byte {error.start + 1} is not UTF-8") from error


def _line_blocks(source: Source, file: BinaryIO, start: int, end: int | None) -> Iterator[list[bytes]]:
    position = _next_line(file, start, end)
    while end is None or position < end:
        lines = _read_lines(file, BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - position))
        if not lines:
            return
        is_first = position == 0
        position += sum(map(len, lines))
        if is_first:
            lines[0] = lines[0].removeprefix(UTF8_MARK)
            if lines[0].lstrip().startswith(b"[") and ".json" in source.path.suffixes:
                way_out = "write one record a line, for example with: jq -c '.[]'"
                raise DataError(f"{source.path}: one JSON list, which cannot be read piece by piece; {way_out}")
        yield lines


def _read_lines(file: BinaryIO, num_bytes: int) -> list[bytes]:
    """Lines up to and including the one with the last of the next ``num_bytes``."""
    # readlines() stops once it has *more* than its hint, and a hint of zero means no limit.
    return file.readlines(num_bytes - 1) if num_bytes > 1 else [line] if (line := file.readline()) else []


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
