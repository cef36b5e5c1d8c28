"""What of a record is put to the chat template: messages, tools, and which turns of the assistant are learned.

Messages go to the template as transformers and the services take them: ``reasoning_content``, ``tool_calls`` whose
arguments are an object, ``name`` and ``tool_call_id``, each where there is one. Content is text, never null.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.data.chat.refusals import Refusal, refusal
from megatron_mixcpt.data.chat.special_tokens import SpecialTokens, unused_mark
from megatron_mixcpt.data.records import Message, ToolCall


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation up to the last turn that is learned."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...]
    turns: tuple[int, ...]
    """Places of the assistant's turns that are learned; the last is the last message."""

    def texts(self) -> Iterator[str]:
        """Everything that the template may write of it."""
        for message in self.messages:
            yield message.content
            if message.reasoning or message.tool_calls or message.name or message.tool_call_id:
                yield from (message.reasoning, message.name, message.tool_call_id)
                for call in message.tool_calls:
                    yield from (call.name, call.id)
                    yield from leaves(json.loads(call.arguments))
        for tool in self.tools:
            yield from leaves(json.loads(tool))


def dialogue_of(messages: Sequence[Message], tools: tuple[str, ...]) -> Dialogue | Refusal:
    """The dialogue of a conversation, or why there is none. A turn that answers nothing is not learned."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    turns = tuple(place for place in places if messages[place].is_supervised)
    if not turns:
        return refusal("not_supervised" if places else "no_assistant_turn")
    if turns == (0,):
        return refusal("no_query")
    if any(not messages[place].content.strip() and not messages[place].tool_calls for place in turns):
        return refusal("empty_response")
    dialogue = Dialogue(tuple(messages[: turns[-1] + 1]), tools, tuple(place for place in turns if place))
    return dialogue if all(map(_is_unicode, dialogue.texts())) else refusal("lone_surrogate")


def _is_unicode(text: str) -> bool:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            return False
    return True


def leaves(value: Any) -> Iterator[str]:
    """The strings and names in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)


def mark_for(dialogues: Sequence[Dialogue], special: SpecialTokens) -> str:
    """What to break special tokens' strings with; empty where the dialogues hold none, as nearly all do."""
    if not any(special.occur_in(dialogue.texts()) for dialogue in dialogues):
        return ""
    return unused_mark(text for dialogue in dialogues for text in dialogue.texts())


class TemplateInput:
    """Makes what a template sees, with special tokens' strings broken by ``mark``."""

    def __init__(self, special: SpecialTokens, mark: str):
        self._special = special
        self._mark = mark

    def messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template's ``messages``."""
        return [self._message(message) for message in messages]

    def tools(self, tools: Sequence[str]) -> list[Any] | None:
        """Definitions of tools as the template's ``tools``; None where there are none."""
        return [self.value(json.loads(tool)) for tool in tools] or None

    def value(self, value: Any) -> Any:
        """A JSON value."""
        if not self._mark:
            return value
        if isinstance(value, str):
            return self._special.broken(value, self._mark)
        if isinstance(value, dict):
            return {self.value(name): self.value(inner) for name, inner in value.items()}
        return [self.value(inner) for inner in value] if isinstance(value, list) else value

    def _message(self, message: Message) -> dict[str, Any]:
        more = {
            "reasoning_content": message.reasoning,
            "tool_calls": [_call(call) for call in message.tool_calls],
            "name": message.name,
            "tool_call_id": message.tool_call_id,
        }
        written = {"role": message.role, "content": message.content}
        return self.value(written | {name: value for name, value in more.items() if value})


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return ({"id": call.id} if call.id else {}) | {"type": "function", "function": function}
