"""The three kinds of record, and how a row of a data file becomes one of them.

=====  ==========================================================================================================
kind   rows accepted (field names can be changed, :class:`FieldNames`)
=====  ==========================================================================================================
cpt    ``{"text"}``
sft    ``{"messages": [{"role", "content"}, ...]}``, ``{"prompt", "response"}``, ``{"instruction", "input", "output"}``
dpo    ``{"prompt", "chosen", "rejected"}``: each a string or a list of messages. Where chosen and rejected are whole
       conversations, what they share at the start is the prompt.
=====  ==========================================================================================================

Nothing is stripped or added: content is kept to the last blank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
    "missing_field": "a field is missing",
    "not_text": "a field is not text",
    "empty": "nothing but white space",
    "lone_surrogate": "half of a surrogate pair, which no UTF-8 can hold",
    "bad_messages": "not a conversation",
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


Record = Document | Conversation | PreferencePair


@dataclass(frozen=True)
class FieldNames:
    """What the fields are called in a user's files. A dot looks inside: "meta.content"."""

    text: str = "text"
    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    prompt: str = "prompt"
    response: str = "response"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    chosen: str = "chosen"
    rejected: str = "rejected"


FIELDS_OF_KIND = {
    "cpt": ("text",),
    "sft": ("messages", "role", "content", "prompt", "response", "instruction", "input", "output"),
    "dpo": ("prompt", "chosen", "rejected", "role", "content"),
}
"""The fields that each kind reads, so that a Parquet file's other columns need not be."""


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of field ``name``, or None. A dotted name is tried as it stands first, then as a path into objects."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def to_record(kind: str, row: Any, names: FieldNames) -> Record:
    """Make a record of ``kind`` from a parsed row. Raises BadRecord."""
    if not isinstance(row, Mapping):
        raise BadRecord("invalid_json", f"expected an object, found {_type_name(row)}")
    makers: dict[str, Callable[[Mapping[str, Any], FieldNames], Record]] = {
        "cpt": _document,
        "sft": _conversation,
        "dpo": _preference_pair,
    }
    return makers[kind](row, names)


def _document(row: Mapping[str, Any], names: FieldNames) -> Document:
    value = lookup(row, names.text)
    return Document(value if isinstance(value, LongText) else _text(row, names.text))


def _conversation(row: Mapping[str, Any], names: FieldNames) -> Conversation:
    if lookup(row, names.messages) is not None:
        messages = _messages(lookup(row, names.messages), names.messages, names)
    elif lookup(row, names.response) is not None:
        messages = (*_turns(row, names.prompt, "user", names), Message("assistant", _text(row, names.response)))
    elif lookup(row, names.output) is not None:
        messages = (Message("user", _instruction(row, names)), Message("assistant", _text(row, names.output)))
    else:
        pairs = f'"{names.prompt}" with "{names.response}", or "{names.instruction}" with "{names.output}"'
        raise BadRecord("missing_field", f'expected "{names.messages}", {pairs}; found {_field_list(row)}')
    if messages[-1].role != "assistant":
        raise BadRecord("bad_messages", f"the last message is of the {messages[-1].role}: there is no response")
    if not messages[-1].content.strip():
        raise BadRecord("empty", "the response is empty")
    return Conversation(messages)


def _instruction(row: Mapping[str, Any], names: FieldNames) -> str:
    extra = lookup(row, names.input)
    if extra is not None and not isinstance(extra, str):
        raise BadRecord("not_text", f'"{names.input}" is {_type_name(extra)}')
    instruction = _text(row, names.instruction)
    return f"{instruction}\n\n{extra}" if extra else instruction


def _preference_pair(row: Mapping[str, Any], names: FieldNames) -> PreferencePair:
    chosen = _turns(row, names.chosen, "assistant", names)
    rejected = _turns(row, names.rejected, "assistant", names)
    shared = _shared_start(chosen, rejected)
    if lookup(row, names.prompt) is not None:
        prompt = _turns(row, names.prompt, "user", names)
        if shared and shared == prompt[-len(shared) :]:
            chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    elif shared and shared[-1].role == "user":
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    else:
        raise BadRecord("missing_field", f'expected "{names.prompt}"; found {_field_list(row)}')
    for name, answer in ((names.chosen, chosen), (names.rejected, rejected)):
        if not answer or not answer[-1].content.strip():
            raise BadRecord("empty", f'"{name}" is empty')
    return PreferencePair(prompt, chosen, rejected)


def _shared_start(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns that open both conversations, up to the last one that is not the assistant's."""
    num_shared = 0
    for index, (left, right) in enumerate(zip(chosen, rejected, strict=False)):
        if left != right:
            break
        if left.role != "assistant":
            num_shared = index + 1
    return chosen[:num_shared]


def _turns(row: Mapping[str, Any], name: str, role: str, names: FieldNames) -> tuple[Message, ...]:
    """A field that holds a string, said by ``role``, or a list of messages."""
    value = lookup(row, name)
    if isinstance(value, list):
        return _messages(value, name, names)
    return (Message(role, _text(row, name)),)


def _messages(value: Any, name: str, names: FieldNames) -> tuple[Message, ...]:
    if value == []:
        raise BadRecord("bad_messages", f'"{name}" is an empty list, expected messages')
    if not isinstance(value, list):
        raise BadRecord("bad_messages", f'"{name}" is {_type_name(value)}, expected a list of messages')
    messages = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            raise BadRecord("bad_messages", f'message {number} of "{name}" is {_type_name(item)}, expected an object')
        role, content = lookup(item, names.role), lookup(item, names.content)
        if not isinstance(role, str) or not isinstance(content, str):
            wrong, found = (names.content, content) if isinstance(role, str) else (names.role, role)
            reason = "missing_field" if found is None else "not_text"
            raise BadRecord(reason, f'"{wrong}" of message {number} of "{name}" is {_type_name(found)}, expected text')
        if role.lower() not in ROLES:
            known = ", ".join(ROLES)
            raise BadRecord("bad_messages", f'message {number} of "{name}" has the role {role!r}; known are {known}')
        messages.append(Message(ROLES[role.lower()], content))
    return tuple(messages)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = lookup(row, name)
    if isinstance(value, str):
        return value
    if value is None:
        raise BadRecord("missing_field", f'expected "{name}"; found {_field_list(row)}')
    raise BadRecord("not_text", f'"{name}" is {_type_name(value)}, expected text')


def _field_list(row: Mapping[str, Any]) -> str:
    names = [name if value is not None else f"{name} (null)" for name, value in row.items()]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no field at all"


def _type_name(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
