"""JSON as records need it: fast, and strict about objects in which a key stands twice.

A parser keeps one of two values of a key and says nothing. orjson cannot be asked to; Python's parser can, at a third
of the speed. What orjson has parsed is therefore compared with the line by its quotes: two for each string and each
key, and those within, which are escaped. A line in which a key stands twice has more of them; it is parsed once more.
"""

import json
from typing import Any

import orjson


class RepeatedKey(ValueError):
    """A key stands twice in one object; ``args[0]`` is the key."""


def load_json(line: bytes | bytearray) -> Any:
    """The value of one line of JSON. Raises ValueError (RepeatedKey among them) or RecursionError.

    What orjson refuses gets a second try with Python's own parser, which takes what Python has always taken (NaN, huge
    integers, lone surrogates; the last are found and rejected later).
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _load_strictly(line)
    if isinstance(value, dict | list) and not _has_distinct_keys(line, value):
        _load_strictly(line)
    return value


def _load_strictly(line: bytes | bytearray) -> Any:
    return json.loads(line.rstrip().decode("utf-8-sig"), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(next(name for name in names if names.count(name) > 1))
    return found


def _has_distinct_keys(line: bytes | bytearray, value: Any) -> bool:
    """Whether no key stands twice for certain; False also where quotes cannot tell."""
    num_outer, num_inner = _num_quotes(value)
    if line.count(b'"') != num_outer + num_inner:
        return False
    return not num_inner or b"\\u0022" not in line  # a quote that is written so makes up for one too many


def _num_quotes(value: Any) -> tuple[int, int]:
    """The quotes around the strings and keys in a value, and those in them."""
    outer, inner, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            outer += 2
            if '"' in item:
                inner += item.count('"')
        elif isinstance(item, dict):
            waiting += item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return outer, inner
