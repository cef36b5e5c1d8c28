"""The three kinds of record: documents, instruction samples and preference pairs.

How rows of data files become records is in ``reading/``. Nothing is stripped or added: content is kept to the last
blank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_mixcpt.data.long_text import LongText

KINDS = ("cpt", "sft", "dpo")
"""In the order in which they are shown and written."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
"""What data sets call the four roles, in lower case; records hold the roles on the right alone."""

REJECT_REASONS = {
    "invalid_json": "not a JSON object",
    "not_utf8": "not UTF-8",
    "repeated_key": "a key stands twice in one object",
    "missing_field": "a field is missing",
    "not_text": "a field is not text",
    "empty": "nothing but white space",
    "lone_surrogate": "half of a surrogate pair, which no UTF-8 can hold",
    "bad_messages": "not a conversation",
    "bad_tools": "tools or calls of tools that cannot be read",
    "nothing_supervised": "every turn of the assistant is marked as not to be learned",
}
"""Why a row cannot be used, by the name that rejects and manifest give it."""


class BadRecord(Exception):
    """A row that cannot be used: ``reason`` (a key of ``REJECT_REASONS``) and what exactly is wrong."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    arguments: str
    """A JSON object, as text."""
    id: str = ""
    """What the tool's answer refers to; empty where the data have none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``; data sets call them by more names, see ``ROLES``."""
    content: str
    """Empty for a turn that only calls tools."""
    reasoning: str = ""
    """What the assistant thinks before it answers (``reasoning_content``)."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """Of the tool that answers."""
    tool_call_id: str = ""
    """The call that a tool answers."""
    is_supervised: bool = True
    """False for a turn of the assistant that is context and is not to be learned (``weight: 0``)."""


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text of the domain."""

    text: str | LongText


@dataclass(frozen=True, slots=True)
class Conversation:
    """An instruction sample: one or more turns, the last of them the assistant's."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """Definitions of the tools that the assistant may call, each a JSON object as text."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a better and a worse continuation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """As of a conversation."""

    @property
    def has_equal_sides(self) -> bool:
        """Whether chosen and rejected say the same, but for blanks at their ends: there is no preference then."""
        return self.chosen == self.rejected or is_same(self.chosen, self.rejected)


def is_same(left: Sequence[Message], right: Sequence[Message]) -> bool:
    """Whether turns are the same but for blanks at the ends of their contents."""
    return len(left) == len(right) and all(
        one.content.strip() == other.content.strip() and replace(one, content=other.content) == other
        for one, other in zip(left, right, strict=True)
    )


Record = Document | Conversation | PreferencePair
