"""A sample's identity: a digest of what it says, the same wherever and in whatever form it lies."""

import hashlib
import json
from dataclasses import fields
from typing import Any

from megatron_mixcpt.data.records import BadRecord, Conversation, Message, PreferencePair

_EXTRAS = [field for field in fields(Message) if field.name not in ("role", "content")]


def sample_id(record: Conversation | PreferencePair) -> str:
    """128 bits of the SHA-256 of all turns and tools, in hexadecimal.

    Of a turn, role and content count, and whatever else differs from its default, so that a plain sample's identity
    does not depend on what others may have. Raises BadRecord for half of a surrogate pair, which no tokenizer takes.
    """
    parts = [record.messages] if isinstance(record, Conversation) else [record.prompt, record.chosen, record.rejected]
    content: list[Any] = [[_described(message) for message in part] for part in parts]
    if record.tools:
        content.append({"tools": record.tools})
    try:
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).hexdigest()[:32]
    except UnicodeEncodeError as error:
        raise BadRecord("lone_surrogate", "a message holds half of a surrogate pair") from error


def to_row(record: Conversation | PreferencePair) -> dict[str, Any]:
    """The record as a row with the default field names; ``to_record`` reads it back as it was."""
    row: dict[str, Any]
    if isinstance(record, Conversation):
        row = {"messages": _rows(record.messages)}
    else:
        row = {"prompt": _rows(record.prompt), "chosen": _rows(record.chosen), "rejected": _rows(record.rejected)}
    return row | ({"tools": [json.loads(tool) for tool in record.tools]} if record.tools else {})


def _described(message: Message) -> tuple[Any, ...]:
    """Role and content, and a dictionary of what differs from its default where anything does."""
    extras = {field.name: value for field in _EXTRAS if (value := getattr(message, field.name)) != field.default}
    if calls := extras.get("tool_calls"):
        extras["tool_calls"] = [(call.name, call.arguments, call.id) for call in calls]
    return (message.role, message.content, *([extras] if extras else []))


def _rows(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    return [_row(message) for message in messages]


def _row(message: Message) -> dict[str, Any]:
    """A message as OpenAI writes it; what is not supervised has the weight 0."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        row["reasoning_content"] = message.reasoning
    if message.tool_calls:
        row["tool_calls"] = [
            ({"id": call.id} if call.id else {})
            | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    row |= {name: value for name in ("name", "tool_call_id") if (value := getattr(message, name))}
    return row if message.is_supervised else row | {"weight": 0}
