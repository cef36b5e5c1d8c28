"""Rows become records and records become texts: accepted shapes, the joints, and what is refused and why."""

import pytest

from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import BadRecord, Message, PreferencePair


def text_of(kind: str, row: object, **names: str) -> str:
    return unified_text(to_record(kind, row, FieldNames(**names)))


def messages(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant in alternation."""
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("cpt", {"text": " kept to the last blank \n"}, " kept to the last blank \n"),
        ("cpt", {"text": "a", "title": 3}, "a"),
        ("sft", {"prompt": "q", "response": "r"}, "q\nr"),
        ("sft", {"prompt": "", "response": "r"}, "r"),
        ("sft", {"prompt": "q\n", "response": "r"}, "q\n\nr"),
        ("sft", {"instruction": "i", "input": "x", "output": "o"}, "i\n\nx\no"),
        ("sft", {"instruction": "i", "input": "", "output": "o"}, "i\no"),
        ("sft", {"instruction": "i", "output": "o"}, "i\no"),
        ("sft", {"messages": messages("a", "b", "c", "d")}, "a\nb\nc\nd"),
        ("sft", {"messages": [{"role": "system", "content": "s"}, *messages("a", "b")]}, "s\na\nb"),
        ("sft", {"messages": [{"role": "system", "content": ""}, *messages("a", "b")]}, "a\nb"),
        ("sft", {"messages": None, "prompt": "q", "response": "r"}, "q\nr"),
        ("dpo", {"prompt": "q", "chosen": "good", "rejected": "bad"}, "q\ngood"),
        ("dpo", {"prompt": messages("a", "b", "c"), "chosen": "good", "rejected": "bad"}, "a\nb\nc\ngood"),
        ("dpo", {"prompt": "q", "chosen": messages("q", "good"), "rejected": messages("q", "bad")}, "q\ngood"),
        ("dpo", {"chosen": messages("a", "b", "c", "+"), "rejected": messages("a", "b", "c", "-")}, "a\nb\nc\n+"),
        ("dpo", {"prompt": "q", "chosen": messages("q", "x")[1:], "rejected": messages("q", "y")[1:]}, "q\nx"),
        ("dpo", {"prompt": "q", "chosen": "same", "rejected": "same"}, "q\nsame"),
    ],
)
def test_unified_text(kind: str, row: object, expected: str) -> None:
    assert text_of(kind, row) == expected


@pytest.mark.parametrize(
    ("kind", "row", "reason", "detail"),
    [
        ("cpt", ["text"], "invalid_json", "found a list"),
        ("cpt", "text", "invalid_json", "found text"),
        ("cpt", {"content": "x"}, "missing_field", 'expected "text"; found content'),
        ("cpt", {"text": None}, "missing_field", r"text \(null\)"),
        ("cpt", {"text": 3}, "not_text", '"text" is a number'),
        ("sft", {"prompt": "q"}, "missing_field", '"response"'),
        ("sft", {"response": "r"}, "missing_field", '"prompt"'),
        ("sft", {"prompt": "q", "response": " \n"}, "empty", "response is empty"),
        ("sft", {"messages": messages("a")}, "bad_messages", "no response"),
        ("sft", {"messages": []}, "bad_messages", "an empty list"),
        ("sft", {"messages": ["a"]}, "bad_messages", "message 1"),
        ("sft", {"messages": [{"role": "user"}]}, "missing_field", '"content" of message 1'),
        ("sft", {"messages": [{"role": "user", "content": 3}]}, "not_text", "a number"),
        ("sft", {"instruction": "i", "input": 3, "output": "o"}, "not_text", '"input" is a number'),
        ("dpo", {"prompt": "q", "chosen": "c"}, "missing_field", '"rejected"'),
        ("dpo", {"prompt": "q", "chosen": "", "rejected": "r"}, "empty", '"chosen" is empty'),
        ("dpo", {"chosen": "c", "rejected": "r"}, "missing_field", '"prompt"'),
        ("dpo", {"prompt": "q", "chosen": messages("q"), "rejected": messages("q")}, "empty", "chosen"),
    ],
)
def test_refused(kind: str, row: object, reason: str, detail: str) -> None:
    with pytest.raises(BadRecord, match=detail) as caught:
        to_record(kind, row, FieldNames())
    assert caught.value.reason == reason


def test_field_names_are_mapped_and_look_inside() -> None:
    assert text_of("cpt", {"meta": {"content": "x"}}, text="meta.content") == "x"
    assert text_of("cpt", {"meta.content": "x", "meta": {}}, text="meta.content") == "x"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert text_of("sft", {"conversations": turns}, messages="conversations", role="from", content="value") == "a\nb"


def test_preference_pair_keeps_both_answers() -> None:
    record = to_record("dpo", {"prompt": "q", "chosen": "c", "rejected": "r"}, FieldNames())
    expected = PreferencePair((Message("user", "q"),), (Message("assistant", "c"),), (Message("assistant", "r"),))
    assert record == expected
