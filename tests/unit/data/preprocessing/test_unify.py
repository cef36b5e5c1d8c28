"""Records with tools, reasoning and turns that are not to be learned, as plain text."""

from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.records import Conversation, Message, PreferencePair, ToolCall

CALL = Message("assistant", "Let me see.", "I must add.", (ToolCall("add", '{"a": 1}', "c1"),))


def test_tools_calls_and_reasoning_are_text() -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", "1+2?"),
        CALL,
        Message("tool", "3", name="add"),
        Message("assistant", "3."),
    )
    text = unified_text(Conversation(messages, tools=('{"name": "add"}', '{"name": "sub"}')))
    assert text.split("\n") == [
        "Be brief.",
        '{"name": "add"}',
        '{"name": "sub"}',
        "1+2?",
        "I must add.",
        "Let me see.",
        '{"name": "add", "arguments": {"a": 1}}',
        "3",
        "3.",
    ]


def test_turns_that_are_not_to_be_learned_are_left_out() -> None:
    bad = Message("assistant", "bad", "why", is_supervised=False)
    user, good = Message("user", "u"), Message("assistant", "good")
    assert unified_text(Conversation((user, bad, user, good))) == "u\nu\ngood"
    assert unified_text(Conversation((user, good, user, bad))) == "u\ngood"
    assert unified_text(PreferencePair((user, bad, user), (good,), (bad,))) == "u\nu\ngood"
