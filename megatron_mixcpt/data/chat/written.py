"""Whether a chat template wrote what it was given: calls of tools, their results and definitions, reasoning.

A template that does not know one of these leaves it out without a word. What is part of the dialogue must not be lost
so: such a sample is refused by name. Reasoning that is left out is noted, for some templates do so on purpose.
"""

import json
from collections.abc import Iterator
from typing import Any

from megatron_mixcpt.data.chat.dialogue import Dialogue, TemplateInput, leaves
from megatron_mixcpt.data.chat.refusals import Refusal, refusal


def what_is_lost(dialogue: Dialogue, given: TemplateInput, rendered: str) -> Refusal | tuple[str, ...]:
    """Why the sample is refused, or the notes on what was left out of ``rendered``, the whole dialogue."""

    def is_written(text: str) -> bool:
        return all(
            part in rendered or any(escaped in rendered for escaped in _escaped(part))
            for part in leaves(given.value(text.strip()))
        )

    if any(not is_written(name) for tool in dialogue.tools for name in _tool_names(json.loads(tool))):
        return refusal("tools_not_written")
    notes = []
    for message in dialogue.messages:
        calls = (text for call in message.tool_calls for text in (call.name, *leaves(json.loads(call.arguments))))
        if not all(map(is_written, calls)):
            return refusal("tool_calls_not_written")
        if message.role == "tool" and not is_written(message.content):
            return refusal("tool_results_not_written")
        if message.reasoning and not is_written(message.reasoning):
            notes.append("reasoning_not_written")
        if message.role == "system" and not is_written(message.content):
            notes.append("system_not_written")
    return tuple(dict.fromkeys(notes))


def _escaped(text: str) -> Iterator[str]:
    """As JSON writes it, with letters of other scripts as they are, and escaped."""
    for ensure_ascii in (False, True):
        yield json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]


def _tool_names(tool: Any) -> Iterator[str]:
    for described in (tool, tool.get("function")) if isinstance(tool, dict) else ():
        if isinstance(described, dict) and isinstance(described.get("name"), str):
            yield described["name"]
