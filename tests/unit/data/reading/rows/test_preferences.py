"""Whatever chosen and rejected share at their start is the prompt, in whatever form the row says it."""

import pytest

from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import BadRecord, PreferencePair

ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def turns(text: str) -> list[dict[str, str]]:
    """``u:Q|a:A`` as messages."""
    return [{"role": ROLES[turn[0]], "content": turn[2:]} for turn in text.split("|")]


def pair(chosen: object, rejected: object, prompt: object = None, **row: object) -> PreferencePair:
    record = to_record("dpo", {"prompt": prompt, "chosen": chosen, "rejected": rejected, **row}, FieldNames())
    assert isinstance(record, PreferencePair)
    return record


def described(record: PreferencePair) -> str:
    sides = (record.prompt, record.chosen, record.rejected)
    return " / ".join("|".join(f"{message.role[0]}:{message.content}" for message in side) for side in sides)


@pytest.mark.parametrize("prompt", [None, "Q", "Q \n", turns("u:Q"), turns("s:S|u:Q"), ""])
def test_prompt_beside_whole_conversations(prompt: object) -> None:
    record = pair(turns("s:S|u:Q|a:A"), turns("s:S|u:Q|a:B"), prompt)
    assert described(record) == "s:S|u:Q / a:A / a:B"
    assert unified_text(record) == "S\nQ\nA"


@pytest.mark.parametrize("prompt", [None, "Q1", "Q2", turns("u:Q1"), turns("u:Q1|a:A1|u:Q2"), turns("a:A1|u:Q2")])
def test_prompt_that_is_a_part_of_a_longer_conversation(prompt: object) -> None:
    record = pair(turns("u:Q1|a:A1|u:Q2|a:A"), turns("u:Q1|a:A1|u:Q2 |a:B"), prompt)
    assert described(record) == "u:Q1|a:A1|u:Q2 / a:A / a:B"


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ("Q", "A", "B", "u:Q / a:A / a:B"),
        ("Q", turns("a:A"), turns("a:B"), "u:Q / a:A / a:B"),
        ("Q", turns("a:A")[0], turns("a:B")[0], "u:Q / a:A / a:B"),
        (turns("s:S|u:Q"), turns("u:Q|a:A"), turns("u:Q|a:B"), "s:S|u:Q / a:A / a:B"),
        (turns("s:S|u:Q1"), turns("u:Q1|a:A1|u:Q2|a:A"), turns("u:Q1|a:A1|u:Q2|a:B"), "s:S|u:Q1|a:A1|u:Q2 / a:A / a:B"),
        (turns("u:Q1"), turns("a:A1|u:Q2|a:A"), turns("a:A1|u:Q2|a:B"), "u:Q1|a:A1|u:Q2 / a:A / a:B"),
        (turns("u:Q1"), turns("a:A1|u:Q1|a:A"), turns("a:A1|u:Q1|a:B"), "u:Q1|a:A1|u:Q1 / a:A / a:B"),
        ("Q", turns("u:Q|a:A"), "B", "u:Q / a:A / a:B"),
        (turns("u:Q|a:A"), "A", "B", "u:Q|a:A / a:A / a:B"),
        (None, turns("u:Q|a:C|t:T|a:A"), turns("u:Q|a:C|t:T|a:B"), "u:Q|a:C|t:T / a:A / a:B"),
        (None, turns("u:Q|a:A|u:Q2|a:C"), turns("u:Q|a:B|u:Q2|a:C"), "u:Q / a:A|u:Q2|a:C / a:B|u:Q2|a:C"),
        (None, turns("u:Q|a:A"), turns("u:Q|a:A"), "u:Q / a:A / a:A"),
    ],
)
def test_forms_of_pairs(prompt: object, chosen: object, rejected: object, expected: str) -> None:
    assert described(pair(chosen, rejected, prompt)) == expected


def test_what_stands_beside_a_pair_is_used() -> None:
    tools = [{"name": "f"}]
    record = pair("A", "B", None, instruction="I", input="X", system="S", history=[["q", "a"]], tools=tools)
    assert described(record) == "s:S|u:q|a:a|u:I\n\nX / a:A / a:B"
    assert record.tools == ('{"name": "f"}',)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "reason", "detail"),
    [
        (turns("u:Q1|a:A"), turns("u:Q2|a:B"), "Q", "bad_messages", '"chosen" goes on with a turn of the user'),
        (turns("u:Q|a:A"), turns("u:Q|a:B|u:C"), None, "bad_messages", "the last message is of the user"),
        (turns("u:Q|a:A"), turns("u:Q|a: "), None, "empty", '"rejected" is empty'),
        (turns("u:Q|a:A"), turns("u:Q"), None, "empty", '"rejected" is empty'),
        ("A", "B", None, "missing_field", 'expected "prompt"'),
    ],
)
def test_pairs_that_are_none(chosen: object, rejected: object, prompt: object, reason: str, detail: str) -> None:
    with pytest.raises(BadRecord, match=detail) as caught:
        pair(chosen, rejected, prompt)
    assert caught.value.reason == reason
