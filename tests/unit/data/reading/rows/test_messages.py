"""Turns in the forms that data sets have: roles, parts, reasoning, calls, and turns that are not to be learned."""

from collections import Counter

import pytest

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import BadRecord, Conversation, Message, ToolCall

Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}


def conversation(row: dict, notes: list[str] | None = None) -> Conversation:
    record = to_record("sft", row, FieldNames(), notes)
    assert isinstance(record, Conversation)
    return record


def turn(item: dict, notes: list[str] | None = None) -> Message:
    """The answer that a message becomes."""
    return conversation({"messages": [Q, A | item]}, notes).messages[1]


def refused(*items: dict) -> tuple[str, str]:
    with pytest.raises(BadRecord) as caught:
        conversation({"messages": [Q, *items]})
    return caught.value.reason, caught.value.detail


def test_sharegpt_needs_no_flags() -> None:
    value = '{"name": "add", "arguments": {"a": 1}}'
    names = ("system", "human", "function_call", "observation", "gpt")
    texts = ("s", "q", value, "3", "It is 3.")
    row = {"conversations": [{"from": name, "value": text} for name, text in zip(names, texts, strict=True)]}
    assert conversation(row).messages == (
        Message("system", "s"),
        Message("user", "q"),
        Message("assistant", "", tool_calls=(ToolCall("add", '{"a": 1}'),)),
        Message("tool", "3"),
        Message("assistant", "It is 3."),
    )


def test_a_calling_turn_may_call_several_tools_and_must_be_json() -> None:
    item = {"role": "function_call", "content": '[{"name": "f", "arguments": "{}"}, {"name": "g"}]'}
    assert turn(item).tool_calls == (ToolCall("f", "{}"), ToolCall("g", "{}"))
    reason, detail = refused(item | {"content": "f(x)"})
    assert reason == "bad_tools" and 'in message 2 of "messages" is text, but not JSON' in detail


@pytest.mark.parametrize(
    ("last", "named"),
    [("human", "user"), ("tool", "tool"), ("observation", "tool"), ("ipython", "tool"), ("developer", "system")],
)
def test_a_conversation_ends_with_the_assistant(last: str, named: str) -> None:
    assert refused(A, {"role": last, "content": "x"}) == (
        "bad_messages",
        f"the last message is of the {named}: there is no response",
    )


def test_roles_are_of_one_table() -> None:
    assert turn({"role": "GPT"}).role == "assistant"
    reason, detail = refused({"role": "narrator", "content": "x"}, A)
    assert reason == "bad_messages" and "has the role 'narrator'; known are system, developer, user" in detail


def test_parts_of_text_are_joined_and_others_refused_by_their_type() -> None:
    text = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there", "image_url": None}, "!"]
    assert turn({"content": text}).content == "hi there!"
    assert turn({"content": [{"type": "thinking", "thinking": "hm"}, *text]}).reasoning == "hm"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    assert refused({"role": "user", "content": [image, *text]}, A) == (
        "not_text",
        '"content" of message 2 of "messages" has a part of type \'image_url\', expected text',
    )
    assert refused(A | {"content": [{"text": "x"}]})[1].endswith("that is an object without a type, expected text")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept(name: str) -> None:
    assert turn({name: "two and two", "content": "4"}) == Message("assistant", "4", "two and two")
    assert turn({name: None}) == Message("assistant", "a")
    reason, detail = refused(A | {name: "x", "reasoning_content": "y", "reasoning": "z"})
    assert reason == "bad_messages" and "two reasonings" in detail
    assert refused(A | {name: 3})[0] == "not_text"


def test_a_turn_that_only_calls_a_tool_has_no_text() -> None:
    function = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": '{"x":1}'}}
    answer = {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"}
    row = {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [function]}, answer, A]}
    _, call, result, _ = conversation(row).messages
    assert call == Message("assistant", "", tool_calls=(ToolCall("f", '{"x":1}', "c1"),))
    assert result == Message("tool", "1", name="f", tool_call_id="c1")
    assert conversation({"messages": row["messages"][:2]}).messages[-1] == call
    assert refused({"role": "assistant", "content": None, "tool_calls": []}) == (
        "missing_field",
        '"content" of message 2 of "messages" is null, expected text',
    )
    assert refused(A, Q | {"tool_calls": [function]}, A)[0] == "bad_tools"


def test_a_result_may_be_an_object() -> None:
    row = {"messages": [Q, {"role": "tool", "content": {"sum": 3}}, A]}
    assert conversation(row).messages[1].content == '{"sum": 3}'


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss": 0.0}])
def test_turns_that_are_not_to_be_learned(mark: dict) -> None:
    notes: list[str] = []
    messages = conversation({"messages": [Q, A | mark, Q, A]}, notes).messages
    assert notes == ["turns of the assistant marked as not to be learned"]
    assert [message.is_supervised for message in messages] == [True, False, True, True]
    assert refused(A | mark)[0] == "nothing_supervised"
    assert turn({name: None for name in mark} | {"weight": 1}).is_supervised


def test_what_no_stage_has_is_refused() -> None:
    assert refused(A | {"weight": 0.5}) == (
        "bad_messages",
        '"weight" of message 2 of "messages" is 0.5; only 0 and 1 are known',
    )
    assert '"train_detail" of message 2' in refused(A | {"train_detail": [{"begin_offset": 0}]})[1]


def test_what_is_not_used_is_counted() -> None:
    notes: list[str] = []
    user = Q | {"thinking": "x", "name": "Ann", "train": True, "images": ["p.png"]}
    assert conversation({"messages": [user, A]}, notes).messages == (Message("user", "q"), Message("assistant", "a"))
    assert Counter(notes) == {
        "reasoning in a turn of the user not used": 1,
        '"name" in a turn of the user not used': 1,
        "a turn of the user marked as to be learned, which is context here": 1,
        '"images" in a message not used': 1,
    }
