"""The unified format of the knowledge mixture (paper section 2.1.1): every record becomes one plain text.

A document is itself. An instruction sample is its query and response, ``[q; r]``; a preference sample its query and
*chosen* response, ``[q; r+]``, the rejected one being left to DPO. No chat template and no name of a role remains: the
contents of the messages, the system's included, are joined with one newline. Messages without content are left out,
so that no text begins with a bare newline. The end of sequence after each sample is a token, added after encoding.

What a turn has beside its content stands as text of its own, in the order in which a model would read or write it::

    the system's message
    {"name": "weather", "parameters": {...}}          definitions of tools, one a line, as JSON
    the user's question
    the reasoning
    the answer's content
    {"name": "weather", "arguments": {"city": "X"}}   calls of tools, one a line
    what the tool answers

Turns of the assistant that are not to be learned (``weight: 0``) are left out, and what follows the last one that is.
"""

import json
from collections.abc import Iterator, Sequence

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.records import Conversation, Document, Message, Record


def unified_text(record: Record) -> str | LongText:
    """The text that ``record`` contributes to continual pre-training."""
    if isinstance(record, Document):
        return record.text
    messages = record.messages if isinstance(record, Conversation) else record.prompt + record.chosen
    return "\n".join(part for part in _parts(messages, record.tools) if part)


def _parts(messages: Sequence[Message], tools: Sequence[str]) -> Iterator[str]:
    learned = [place for place, message in enumerate(messages) if message.role == "assistant" and message.is_supervised]
    for place, message in enumerate(messages[: learned[-1] + 1]):
        if tools and (place == 1 or message.role != "system"):
            yield from tools
            tools = ()
        if message.is_supervised:
            yield message.reasoning
            yield message.content
            for call in message.tool_calls:
                yield f'{{"name": {json.dumps(call.name, ensure_ascii=False)}, "arguments": {call.arguments}}}'
