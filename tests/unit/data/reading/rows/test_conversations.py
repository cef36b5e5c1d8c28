"""Instruction samples: what stands beside a query and its response is used, or counted by name."""

from collections import Counter

import pytest

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import BadRecord, Message


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


def messages_of(row: dict, notes: list[str] | None = None) -> list[tuple[str, str]]:
    record = to_record("sft", row, FieldNames(), notes)
    return [(message.role[0], message.content) for message in record.messages]


def test_system_and_history_of_alpaca() -> None:
    row = {"system": "Answer in French.", "history": [["q0", "a0"]], "instruction": "Hi", "output": "Salut"}
    assert messages_of(row) == [("s", "Answer in French."), ("u", "q0"), ("a", "a0"), ("u", "Hi"), ("a", "Salut")]
    assert messages_of(row | {"history": [], "system": ""}) == [("u", "Hi"), ("a", "Salut")]
    for history in ("q0", [["q0"]], [["q0", 3]]):
        with pytest.raises(BadRecord, match="history") as caught:
            messages_of(row | {"history": history})
        assert caught.value.reason == "not_text"


def test_system_beside_messages() -> None:
    row = {"system": "s", "messages": turns("q", "a")}
    with_system = [{"role": "system", "content": "s "}, *turns("q", "a")]
    assert messages_of(row) == [("s", "s"), ("u", "q"), ("a", "a")]
    assert messages_of(row | {"messages": with_system}) == [("s", "s "), ("u", "q"), ("a", "a")]
    with pytest.raises(BadRecord, match='"system" is not the system message'):
        messages_of(row | {"messages": with_system, "system": "other"})


def test_prompt_and_completion_in_messages() -> None:
    system = {"role": "system", "content": "s"}
    row = {"prompt": [system, *turns("q")], "completion": turns("q", "a")[1:]}
    assert messages_of(row) == [("s", "s"), ("u", "q"), ("a", "a")]
    assert messages_of(row | {"completion": "a"}) == [("s", "s"), ("u", "q"), ("a", "a")]
    assert messages_of({"prompt": "q", "completion": "a"}) == [("u", "q"), ("a", "a")]
    named = to_record("sft", row, FieldNames(response="completion"))
    assert named == to_record("sft", row, FieldNames())
    history = row | {"history": [["q0", "a0"]]}
    assert messages_of(history) == [("s", "s"), ("u", "q0"), ("a", "a0"), ("u", "q"), ("a", "a")]


def test_reasoning_beside_a_response() -> None:
    record = to_record("sft", {"prompt": "q", "response": "a", "reasoning_content": "r"}, FieldNames())
    assert record.messages[-1] == Message("assistant", "a", "r")
    mapped = to_record("sft", {"prompt": "q", "response": "a", "cot": "r"}, FieldNames(reasoning="cot"))
    assert mapped == record
    with pytest.raises(BadRecord, match="reasoning_content"):
        to_record("sft", {"prompt": "q", "response": "a", "reasoning_content": 3}, FieldNames())


def test_fields_that_say_something_and_are_not_used_are_counted() -> None:
    notes: list[str] = []
    row = {
        "messages": turns("q", "a"),
        "history": [["q0", "a0"]],
        "input": "x",
        "reasoning_content": "r",
        "prompt": "q",
    }
    assert messages_of(row, notes) == [("u", "q"), ("a", "a")]
    assert Counter(notes) == {f'field "{name}" not used': 1 for name in ("history", "input", "reasoning_content")}
    notes.clear()
    messages_of({"messages": turns("q", "a"), "history": [], "input": "", "system": None}, notes)
    assert not notes
