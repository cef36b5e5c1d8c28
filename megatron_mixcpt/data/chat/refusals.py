"""Why a good record gives no sample in a chat template, and what happens to one that is used all the same; by name."""

from dataclasses import dataclass

REFUSALS = {
    "no_assistant_turn": "no message of the assistant",
    "not_supervised": "no message of the assistant is to be learned",
    "no_query": "nothing stands before the assistant's message",
    "empty_response": "the assistant's message is empty",
    "lone_surrogate": "a message holds half of a surrogate pair, which no tokenizer takes",
    "several_turns": "the two responses are not one message of the assistant each",
    "template_refuses": "the chat template does not take such a conversation",
    "template_rewrites": "the chat template writes the response otherwise than its generation prompt announces",
    "tools_not_written": "the chat template does not write the definitions of tools",
    "tool_calls_not_written": "the chat template does not write calls of tools",
    "tool_results_not_written": "the chat template does not write what tools answer",
    "too_long": "more tokens than the sequence length",
}
"""Why a sample is not used."""

NOTES = {
    "last_turn_only": "learned in its last turn only, because the chat template rewrites earlier ones",
    "reasoning_not_written": "without reasoning that the chat template does not write",
    "system_not_written": "without the system message, which the chat template does not write",
}
"""What happened to a sample that is used."""


@dataclass(frozen=True)
class Refusal:
    """Why a sample is not used: ``reason`` is a key of ``REFUSALS``."""

    reason: str
    detail: str


def refusal(reason: str) -> Refusal:
    """A refusal with nothing more to say."""
    return Refusal(reason, REFUSALS[reason])
