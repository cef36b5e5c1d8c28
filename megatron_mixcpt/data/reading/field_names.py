"""What the fields of a row are called, by what they are for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class FieldNames:
    """What the fields are called in a user's files. A dot looks inside: "meta.content"."""

    text: str = "text"
    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    reasoning: str = "reasoning_content"
    prompt: str = "prompt"
    response: str = "response"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str = "system"
    history: str = "history"
    tools: str = "tools"

    @cached_property
    def alternatives(self) -> Mapping[str, tuple[str, ...]]:
        """The names under which each field is looked for, in order."""
        return {
            field: (name, *OTHER_NAMES.get(field, ())) if name == getattr(FieldNames, field) else (name,)
            for field, name in asdict(self).items()
        }


FIELDS_OF_KIND = {
    "cpt": ("text",),
    "sft": (
        *("messages", "role", "content", "reasoning", "prompt", "response", "instruction", "input", "output"),
        *("system", "history", "tools"),
    ),
    "dpo": (
        *("prompt", "chosen", "rejected", "role", "content", "reasoning", "instruction", "input"),
        *("system", "history", "tools"),
    ),
}
"""The fields that each kind reads, so that a Parquet file's other columns need not be."""

OTHER_NAMES = {
    "messages": ("conversations",),
    "role": ("from",),
    "content": ("value",),
    "reasoning": ("reasoning", "thinking"),
    "response": ("completion",),
    "tools": ("functions",),
}
"""What a field may be called as well, where no flag names it and a row has none of its first name."""


def record_fields(kind: str, names: FieldNames) -> frozenset[str]:
    """The top-level fields that a record of ``kind`` may use."""
    used = {name for field in FIELDS_OF_KIND[kind] for name in names.alternatives[field]}
    return frozenset(used | {name.partition(".")[0] for name in used})


def lookup(row: Mapping[str, Any], name: str) -> Any:
    """The value of field ``name``, or None. A dotted name is tried as it stands first, then as a path into objects."""
    if name in row:
        return row[name]
    if "." not in name:
        return None
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
