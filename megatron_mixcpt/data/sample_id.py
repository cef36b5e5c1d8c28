"""A sample's identity: a digest of what it says, the same wherever and in whatever form it lies."""

import hashlib
import json

from megatron_mixcpt.data.records import BadRecord, Conversation, Message, PreferencePair


def sample_id(record: Conversation | PreferencePair) -> str:
    """128 bits of the SHA-256 of all roles and contents, in hexadecimal.

    Raises BadRecord for half of a surrogate pair, which no tokenizer takes either.
    """
    parts = [record.messages] if isinstance(record, Conversation) else [record.prompt, record.chosen, record.rejected]
    content = json.dumps([[(message.role, message.content) for message in part] for part in parts], ensure_ascii=False)
    try:
        return hashlib.sha256(content.encode("utf-8")).hexdigest()[:32]
    except UnicodeEncodeError as error:
        raise BadRecord("lone_surrogate", "a message holds half of a surrogate pair") from error


def to_row(record: Conversation | PreferencePair) -> dict[str, list[dict[str, str]]]:
    """The record as a row with the default field names; ``records.to_record`` reads it back as it was."""
    if isinstance(record, Conversation):
        return {"messages": _rows(record.messages)}
    return {"prompt": _rows(record.prompt), "chosen": _rows(record.chosen), "rejected": _rows(record.rejected)}


def _rows(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
