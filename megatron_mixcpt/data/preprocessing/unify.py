"""The unified format of the knowledge mixture (paper section 2.1.1): every record becomes one plain text.

A document is itself. An instruction sample is its query and response, ``[q; r]``; a preference sample its query and
*chosen* response, ``[q; r+]``, the rejected one being left to DPO. No chat template and no name of a role remains: the
contents of the messages, the system's included, are joined with one newline. Messages without content are left out,
so that no text begins with a bare newline. The end of sequence after each sample is a token, added after encoding.
"""

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.records import Conversation, Document, Message, Record


def unified_text(record: Record) -> str | LongText:
    """The text that ``record`` contributes to continual pre-training."""
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Conversation):
        return _joined(record.messages)
    return _joined(record.prompt + record.chosen)


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in messages if message.content)
