"""What hostile inputs are made of: JSON of all sorts, and files that are almost right."""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.sampled_from([2**31, 2**62, 2**63, 2**64, 10**30]),
    st.floats(),
    st.booleans(),
)
TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "../x", "/etc/passwd", "a\0b", "\ud800", "user", "assistant", "BF16"])
)
SCALARS = st.one_of(st.none(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)
Draw = Callable[[st.SearchStrategy], Any]


def dumped(value: Any) -> bytes:
    """JSON as a hostile file has it: NaN, infinities and halves of surrogate pairs as they are."""
    return json.dumps(value).encode()


def mutated(draw: Draw, value: Any) -> Any:
    """``value`` with one of its parts, at any depth, left out, doubled or replaced."""
    if draw(st.integers(0, 3)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(JSON)
    if isinstance(value, list):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(draw, value[place]), *value[place + draw(st.integers(0, 1)) :]]
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 9)) == 0:
        return {name: part for name, part in value.items() if name != key}
    return {**value, key: mutated(draw, value[key])}


def damaged(draw: Draw, content: bytes) -> bytes:
    """``content`` cut, or with some bytes replaced, or as it is."""
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=9)) + content[place + draw(st.integers(0, 9)) :]
    return content


def nested(draw: Draw) -> bytes:
    """JSON so deep that a parser may run out of stack."""
    depth = draw(st.sampled_from([10, 1_000, 100_000]))
    return b"[" * depth + b"]" * draw(st.sampled_from([0, depth]))
