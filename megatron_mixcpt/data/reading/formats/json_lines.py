"""JSON Lines: one record a line. Plain files are split by bytes; compressed ones are read as a whole."""

import json
import re
from collections.abc import Iterator, Set
from itertools import accumulate
from typing import Any, BinaryIO, cast

from megatron_mixcpt.data.long_text import LONG_BYTES, load_json_keeping_long
from megatron_mixcpt.data.reading.formats.compression import open_unpacked
from megatron_mixcpt.data.reading.formats.text_encoding import UTF8_MARK, recoding, wide_encoding
from megatron_mixcpt.data.reading.input_format import FileRange, InputFormat, Row, Source
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.data.strict_json import RepeatedKey, load_json
from megatron_mixcpt.errors import DataError

BLOCK_BYTES = 1 << 16  # small enough that what is read is still in the cache when it is parsed
# Line ends of a carriage return alone, or a file that ends without one before the byte order mark of the next.
SEVERAL_RECORDS = re.compile(rb"}\s*\r\s*{|}\xef\xbb\xbf{")
WIKIEXTRACTOR_NAME = re.compile(r"wiki_\d+")


class JsonLines(InputFormat):
    """A file of JSON objects, one a line; its ranges count bytes, and a line belongs to the range that it begins in."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson", ".json")
    is_compressible = True

    def has_name(self, name: str) -> bool:
        """By its suffix, or as wikiextractor names its files."""
        return super().has_name(name) or WIKIEXTRACTOR_NAME.fullmatch(name) is not None

    def read(
        self, source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
    ) -> Iterator[list[Row]]:
        """The lines that begin from ``start`` to ``end``. Raises OSError or EOFError where the file is damaged."""
        with open_unpacked(source) as file:
            yield from _line_blocks(source, file, start, end)

    def parse(self, row: Row, keep_long: bool) -> Any:
        """The value of a line. Raises BadRecord."""
        assert isinstance(row, bytes | bytearray)
        return parse_json(row, keep_long)

    def is_blank(self, row: Row) -> bool:
        """Whether a line is empty but for white space."""
        assert isinstance(row, bytes | bytearray)
        return not row or row.isspace()

    def ranges(self, source: Source, range_bytes: int) -> list[FileRange]:
        """Ranges of bytes, of a plain file."""
        if source.compression or source.size == 0:
            return super().ranges(source, range_bytes)
        bounds = [*range(0, source.size, range_bytes), source.size]
        return [FileRange(start, end, end - start) for start, end in zip(bounds, bounds[1:], strict=False)]

    def lines_before(self, source: Source, start: int) -> int:
        """The lines that begin before byte ``start``."""
        left, count, block = start, 0, b""
        with open(source.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, 1 << 20))):
                count += block.count(b"\n")
                left -= len(block)
        return count + (not block.endswith(b"\n"))


def parse_json(line: bytes | bytearray, keep_long: bool = False) -> Any:
    """The value of one line of JSON (see :func:`load_json`). Raises BadRecord."""
    try:
        return load_json_keeping_long(line) if keep_long and len(line) > LONG_BYTES else load_json(line)
    except UnicodeDecodeError as error:
        raise BadRecord("not_utf8", f"byte {error.start + 1} is not UTF-8") from error
    except json.JSONDecodeError as error:
        detail = f"invalid JSON at column {error.colno} ({error.msg})"
        if SEVERAL_RECORDS.search(line):
            detail += "; there are several records in the line, without a line feed between them"
        raise BadRecord("invalid_json", detail) from error
    except RepeatedKey as error:
        raise BadRecord("repeated_key", f"the key {error.args[0]!r} stands twice in one object") from error
    except (RecursionError, ValueError) as error:
        raise BadRecord("invalid_json", f"invalid JSON ({error})") from error


def _line_blocks(source: Source, file: BinaryIO, start: int, end: int | None) -> Iterator[list[Row]]:
    """The lines that begin between two places of a file, without their ends."""
    position = _next_line(file, start, end)
    if end is not None and position >= end:
        return
    for lines in _read_lines(file):
        sizes = [len(line) + 1 for line in lines]
        if position == 0:
            if encoding := wide_encoding(lines[0]):
                raise DataError(f"{source.path}: {recoding(encoding)}")
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
        yield cast(list[Row], lines)  # the list itself: whoever takes it lets go of its lines one by one


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
