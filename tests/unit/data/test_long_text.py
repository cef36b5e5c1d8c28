"""Long texts give, piece by piece, what a parser gives at once; and are told from what is not well-formed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mixcpt.data import long_text
from megatron_mixcpt.data.long_text import LongText, load_json_keeping_long, slices
from megatron_mixcpt.data.reading.formats.json_lines import parse_json
from megatron_mixcpt.data.records import BadRecord

TEXTS = st.text(st.sampled_from('ab" \\/\n\t\x01é好🙂\u2028') | st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of more than seven bytes are long, and come in pieces of a few characters."""
    monkeypatch.setattr(long_text, "LONG_BYTES", 7)
    monkeypatch.setattr(long_text, "PLAIN_PIECE_BYTES", 3)
    pattern = long_text.JSON_PIECE.pattern.replace(b"{1,64}+", b"{1,2}+").replace(b"{1,4096}+", b"{1,2}+")
    monkeypatch.setattr(long_text, "JSON_PIECE", long_text.re.compile(pattern, long_text.re.DOTALL))


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, ascii_only=st.booleans(), size=st.integers(1, 9), overlap=st.integers(0, 3))
def test_equals_the_parser(text: str, ascii_only: bool, size: int, overlap: int) -> None:
    line = json.dumps({"a": [1, {"text": text}], "b": "x"}, ensure_ascii=ascii_only).encode()
    parsed = load_json_keeping_long(bytearray(line))
    found = parsed["a"][1]["text"]
    assert parsed["b"] == "x" and isinstance(found, LongText) == (
        len(json.dumps(text, ensure_ascii=ascii_only).encode()) > 7
    )
    assert len(found) == len(text)
    assert list(slices(found, size, overlap)) == list(slices(text, size, overlap)) or text == ""
    plain = text.encode()
    assert "".join(LongText(plain, 0, len(plain), is_json=False).pieces()) == text


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "long enough \xff to be kept"}', "not_utf8"),
        (b'{"text": "long enough \\x to be kept"}', "invalid_json"),
        (b'{"text": "long enough \\u12 to be kept"}', "invalid_json"),
        (b'{"text": "long enough \x01 to be kept"}', "invalid_json"),
        (b'{"text": "long enough to be kept", }', "invalid_json"),
        (b'{"text": "long enough but never closed}', "invalid_json"),
    ],
)
def test_what_is_not_well_formed_is_refused_for_the_same_reason(line: bytes, reason: str) -> None:
    for keep_long in (False, True):
        with pytest.raises(BadRecord) as caught:
            parse_json(line, keep_long)
        assert caught.value.reason == reason


def test_place_of_a_bad_byte_is_that_in_the_line() -> None:
    details = []
    for keep_long in (False, True):
        with pytest.raises(BadRecord) as caught:
            parse_json(b'{"text": "long enough \xff to be kept"}', keep_long)
        details.append(caught.value.detail)
    assert details[0] == details[1] == "byte 23 is not UTF-8"
