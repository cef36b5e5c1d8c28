"""JSON in which a key stands twice is refused, however the line looks; all else is what Python's parser gives."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mixcpt.data.strict_json import RepeatedKey, load_json


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":"first","text":"second"}',
        b'{"text" : "first", "text" : "second"}',
        b'{"a": {"b": 1, "c": 2, "b": 3}}',
        b'[{"a": 1}, {"b": [{"c": 1, "c": 1}]}]',
        b'{"x": "says \\"text\\": and \\"more\\":", "b": ":", "b": 1}',
        b'{"a": NaN, "a": 1}',
        b'{"a": "", "a": "\\u0022\\u0022\\u0022\\u0022"}',
        b'{"t\\u0065xt": 1, "text": 2}',
    ],
)
def test_a_key_that_stands_twice_is_refused(line: bytes) -> None:
    with pytest.raises(RepeatedKey):
        load_json(line)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": ":", "b": "\\":", "c\\\\": {"a": 1}}',
        b'{"a" : [{"a": 1}, {"a": 2}]}',
        b'{"a": "{\\"a\\": 1, \\"a\\": 2}"}',
        b'":"',
    ],
)
def test_what_only_looks_so_is_taken(line: bytes) -> None:
    assert load_json(line) == json.loads(line)


KEYS = st.sampled_from(["a", "b", 'c":', "\\", ":"])
VALUES = st.recursive(
    st.text(alphabet='ab":\\ ', max_size=6) | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=3).map(tuple),
    max_leaves=8,
)


def written(value: object, colon: str) -> str:
    """JSON of a value in which a tuple of pairs is an object, its keys perhaps repeated."""
    if isinstance(value, tuple):
        return "{" + ",".join(json.dumps(key) + colon + written(item, colon) for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(item, colon) for item in value) + "]"
    return json.dumps(value)


def repeats(value: object) -> bool:
    if isinstance(value, tuple):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(item) for _, item in value)
    return isinstance(value, list) and any(repeats(item) for item in value)


@settings(max_examples=200, deadline=None)
@given(value=VALUES, colon=st.sampled_from([":", ": ", " : "]))
def test_keys_are_found_as_pythons_parser_finds_them(value: object, colon: str) -> None:
    line = written(value, colon)
    if repeats(value):
        with pytest.raises(RepeatedKey):
            load_json(line.encode())
    else:
        assert load_json(line.encode()) == json.loads(line)
