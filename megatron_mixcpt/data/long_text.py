"""Texts too long to be held unpacked: they stay the bytes they were read as, and are unpacked a piece at a time.

A Python string takes up to four bytes a character, and a JSON parser holds the line, a copy of it and the string at
once. A document of 100 MB is therefore kept as its line alone (:class:`LongText`), and everything that looks at texts
does so in :func:`slices` of a bounded number of characters, of a string and of a long text alike.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from megatron_mixcpt.data.strict_json import load_json

LONG_BYTES = 1 << 20
"""JSON strings and plain texts of more bytes than this become long texts."""

JSON_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# Ends at no place inside an escape, nor between the escapes of a pair of surrogates.
JSON_PIECE = re.compile(rb"(?:[^\\]{1,64}+|\\u[dD][89abAB]..(?:\\u....)?|\\u....|\\[^u]){1,4096}+", re.DOTALL)
PLAIN_PIECE_BYTES = 1 << 18


class LongText:
    """A text in UTF-8, or in the escapes of a JSON string, between two places of ``data``.

    Unpacked once when made, which raises ValueError where it is not well-formed.
    """

    def __init__(self, data: bytes | bytearray | memoryview, start: int, end: int, is_json: bool):
        self._data = data
        self._start = start
        self._end = end
        self._is_json = is_json
        self._length = sum(map(len, self.pieces()))

    def __len__(self) -> int:
        """The number of characters."""
        return self._length

    @property
    def has_crlf(self) -> bool:
        """Whether a line of it ends in a carriage return."""
        return (
            re.compile(rb"\\r\\n" if self._is_json else b"\r\n").search(self._data, self._start, self._end) is not None
        )

    def pieces(self) -> Iterator[str]:
        """The text in pieces of some 256 kB, cut anywhere between two characters."""
        start = self._start
        while start < self._end:
            end = self._piece_end(start)
            yield self._unpacked(start, end)
            start = end

    def _unpacked(self, start: int, end: int) -> str:
        piece = bytes(self._data[start:end])
        try:
            return load_json(b'"' + piece + b'"') if self._is_json else piece.decode("utf-8")
        except UnicodeDecodeError as error:
            error.start += start - self._is_json
            raise
        except json.JSONDecodeError as error:
            raise ValueError(f"{error.msg} after byte {start}") from error

    def _piece_end(self, start: int) -> int:
        end = min(start + PLAIN_PIECE_BYTES, self._end)
        if self._is_json:
            match = JSON_PIECE.match(self._data, start, self._end)
            end = match.end() if match else self._end  # the bytes of no escape, which the parser then refuses
        while end < self._end and self._data[end] & 0xC0 == 0x80:  # the inner bytes of a character
            end += 1
        return end


def slices(text: str | LongText, size: int, overlap: int = 0) -> Iterator[str]:
    """A text in slices that begin every ``size`` characters and reach ``overlap`` characters into the next ones."""
    if isinstance(text, str):
        if len(text) <= size:
            yield text
            return
        for start in range(0, len(text), size):
            yield text[start : start + size + overlap]
        return
    waiting = ""
    for piece in text.pieces():
        waiting += piece
        while len(waiting) >= size + overlap:
            yield waiting[: size + overlap]
            waiting = waiting[size:]
    while waiting:
        yield waiting[: size + overlap]
        waiting = waiting[size:]


def load_json_keeping_long(line: bytes | bytearray) -> Any:
    """As :func:`load_json`, but strings of more than ``LONG_BYTES`` in objects and lists become long texts."""
    spans = [match.span() for match in JSON_STRING.finditer(line) if match.end() - match.start() > LONG_BYTES]
    if not spans:
        return load_json(line)
    texts, rest, position = {}, bytearray(), 0
    for number, (start, end) in enumerate(spans):
        name = f"\0long text {number}"
        texts[name] = LongText(line, start + 1, end - 1, is_json=True)
        rest += line[position:start] + orjson.dumps(name)
        position = end
    return _with_texts(load_json(rest + line[position:]), texts)


def _with_texts(value: Any, texts: dict[str, LongText]) -> Any:
    """``value`` with the texts in the places of their names; containers are changed in place."""
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, list):
        value[:] = [_with_texts(item, texts) for item in value]
    elif isinstance(value, dict):
        value.update({key: _with_texts(item, texts) for key, item in value.items()})
    return value
