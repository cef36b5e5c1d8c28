"""Lists of messages in the forms that data sets have: OpenAI's, ShareGPT's, and what others add to a turn."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_mixcpt.data.reading.field_names import lookup
from megatron_mixcpt.data.reading.rows.row_fields import RowFields, type_name
from megatron_mixcpt.data.reading.rows.tool_calls import read_calls
from megatron_mixcpt.data.records import ROLES, BadRecord, Message, ToolCall

CALLING_ROLES = ("function_call", "tool_call")
"""Roles of a turn whose content is a call of a tool, as JSON."""
SUPERVISION = ("weight", "train", "training", "loss")
"""Fields of a turn that say whether it is to be learned: 1 or true, 0 or false."""
PART_TYPES = ("text", "input_text", "output_text")
REFUSED = ("train_detail",)
"""Fields of a turn that change what is learned of it, in a way that no stage has."""
UNUSED = ("refusal", "reasoning_details", "images", "image", "audio", "videos")
"""Fields of a turn that say something and have no place in a record; they are counted."""


def read_turns(fields: RowFields, field: str, role: str, tools: tuple[str, ...]) -> tuple[Message, ...]:
    """A field that holds a string, said by ``role``, a message or a list of messages. Raises BadRecord."""
    value = fields.value(field)
    if isinstance(value, list | Mapping):
        return read_messages(value, fields.name(field), fields, tools)
    return (Message(role, fields.text(field)),)


def read_messages(value: Any, name: str, fields: RowFields, tools: tuple[str, ...]) -> tuple[Message, ...]:
    """The messages in the field called ``name``. Raises BadRecord."""
    if value == []:
        raise BadRecord("bad_messages", f'"{name}" is an empty list, expected messages')
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise BadRecord("bad_messages", f'"{name}" is {type_name(value)}, expected a list of messages')
    plain = {*fields.names.alternatives["role"], *fields.names.alternatives["content"]}
    messages = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, Mapping):
            raise BadRecord("bad_messages", f'message {number} of "{name}" is {type_name(item)}, expected an object')
        where = f'message {number} of "{name}"'
        has_more = any(value is not None and key not in plain for key, value in item.items())
        messages.append(_Turn(item, where, fields, tools).message(has_more))
    return tuple(messages)


class _Turn:
    """One message of a row, not yet checked."""

    def __init__(self, item: Mapping[str, Any], where: str, fields: RowFields, tools: tuple[str, ...]):
        self._item = item
        self._where = where
        self._fields = fields
        self._tools = tools
        self._thoughts: list[str] = []

    def message(self, has_more: bool) -> Message:
        """The message; ``has_more``: whether it has fields beside role and content. Raises BadRecord."""
        name, given = self._field("role")
        if not isinstance(given, str):
            raise self._not_text(name, given)
        role = ROLES.get(given) or ROLES.get(given.lower())
        if role is None:
            known = ", ".join(ROLES)
            raise BadRecord("bad_messages", f"{self._where} has the role {given!r}; known are {known}")
        calls = self._calls(given.lower(), role, has_more)
        content = "" if given.lower() in CALLING_ROLES else self._content(role, bool(calls))
        if not has_more and not self._thoughts:
            return Message(role, content, tool_calls=calls)
        self._check_more()
        return Message(
            role,
            content,
            self._reasoning(role),
            calls,
            self._of_tool("name", role),
            self._of_tool("tool_call_id", role),
            self._is_supervised(role),
        )

    def _field(self, field: str) -> tuple[str, Any]:
        """A field's name in this message, and its value or None."""
        names = self._fields.names.alternatives[field]
        for name in names:
            if (value := lookup(self._item, name)) is not None:
                return name, value
        return names[0], None

    def _not_text(self, name: str, found: Any) -> BadRecord:
        reason = "missing_field" if found is None else "not_text"
        return BadRecord(reason, f'"{name}" of {self._where} is {type_name(found)}, expected text')

    def _content(self, role: str, has_calls: bool) -> str:
        name, content = self._field("content")
        if isinstance(content, str):
            return content
        if content is None and has_calls:
            return ""
        if isinstance(content, list):
            return "".join(self._part(name, part) for part in content)
        if isinstance(content, Mapping) and role == "tool":  # a result that is an object
            return json.dumps(content, ensure_ascii=False)
        raise self._not_text(name, content)

    def _part(self, name: str, part: Any) -> str:
        """The text of one part of a list that is a turn's content, as chat templates join them."""
        if isinstance(part, str):
            return part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in PART_TYPES and isinstance(part.get("text"), str):
            return part["text"]
        if kind == "thinking" and isinstance(part.get("thinking"), str):
            self._thoughts.append(part["thinking"])
            return ""
        found = f"of type {kind!r}" if isinstance(kind, str) else f"that is {type_name(part)} without a type"
        raise BadRecord("not_text", f'"{name}" of {self._where} has a part {found}, expected text')

    def _calls(self, given: str, role: str, has_more: bool) -> tuple[ToolCall, ...]:
        if given in CALLING_ROLES:
            return read_calls(self._field("content")[1], self._where, self._tools, self._fields)
        value = (self._item.get("tool_calls") or self._item.get("function_call")) if has_more else None
        if not value or isinstance(value, str) and not value.strip():
            return ()
        if role != "assistant":
            raise BadRecord("bad_tools", f"{self._where} is of the {role} and calls tools")
        return read_calls(value, self._where, self._tools, self._fields)

    def _reasoning(self, role: str) -> str:
        names = self._fields.names.alternatives["reasoning"]
        found = {name: value for name in names if (value := lookup(self._item, name))}
        for name, value in found.items():
            if not isinstance(value, str):
                raise self._not_text(name, value)
        distinct = {*found.values(), *(["\n".join(self._thoughts)] if self._thoughts else [])}
        if len(distinct) > 1:
            raise BadRecord("bad_messages", f"{self._where} has two reasonings, which differ; keep one")
        if distinct and role != "assistant":
            self._fields.note(f"reasoning in a turn of the {role} not used")
            return ""
        return next(iter(distinct), "")

    def _of_tool(self, field: str, role: str) -> str:
        """A field that a turn of a tool has: its name, or the call that it answers."""
        value = self._item.get(field)
        if not value:
            return ""
        if not isinstance(value, str):
            raise self._not_text(field, value)
        if role != "tool":
            self._fields.note(f'"{field}" in a turn of the {role} not used')
            return ""
        return value

    def _is_supervised(self, role: str) -> bool:
        marks = {name: self._item.get(name) for name in SUPERVISION}
        for name, value in marks.items():
            if value not in (None, 0, 1):
                raise BadRecord("bad_messages", f'"{name}" of {self._where} is {value!r}; only 0 and 1 are known')
        if role == "assistant":
            is_supervised = not any(value == 0 for value in marks.values())
            if not is_supervised:
                self._fields.note("turns of the assistant marked as not to be learned")
            return is_supervised
        if any(value == 1 for value in marks.values()):
            self._fields.note(f"a turn of the {role} marked as to be learned, which is context here")
        return True

    def _check_more(self) -> None:
        for name in REFUSED:
            if self._item.get(name):
                raise BadRecord("bad_messages", f'"{name}" of {self._where} cannot be used; remove it')
        for name in UNUSED:
            if self._item.get(name):
                self._fields.note(f'"{name}" in a message not used')


def check_end(messages: Sequence[Message], what: str) -> None:
    """Raise BadRecord where turns do not end in a response that is to be learned; ``what`` names the response."""
    last = messages[-1]
    if last.role != "assistant":
        raise BadRecord("bad_messages", f"the last message is of the {last.role}: there is no response")
    if not last.content.strip() and not last.tool_calls:
        raise BadRecord("empty", f"{what} is empty")
    if not any(message.is_supervised for message in messages if message.role == "assistant"):
        raise BadRecord("nothing_supervised", "every turn of the assistant is marked as not to be learned")
