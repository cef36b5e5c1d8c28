"""Preference pairs. Whatever chosen and rejected share at their start is the prompt, beside a field for it or without.

A side is a text, a message or a list of messages: the response alone, or the whole conversation. Where the two share
turns at their start, these are the prompt, up to the last that is not the assistant's. A prompt field adds the turns
that the shared start lacks, and none twice: it may be the whole of the shared start, a part of it (its first question,
the last one, all but the system's), or go on before it. Turns count as the same if only blanks at their ends differ.
"""

from megatron_mixcpt.data.reading.rows.conversations import instruction, with_history, with_system
from megatron_mixcpt.data.reading.rows.messages import check_end, read_turns
from megatron_mixcpt.data.reading.rows.row_fields import RowFields
from megatron_mixcpt.data.reading.rows.tool_calls import read_tools
from megatron_mixcpt.data.records import BadRecord, Message, PreferencePair, is_same

Turns = tuple[Message, ...]


def preference_pair(fields: RowFields) -> PreferencePair:
    """The pair of a row. Raises BadRecord."""
    tools = read_tools(fields)
    chosen = read_turns(fields, "chosen", "assistant", tools)
    rejected = read_turns(fields, "rejected", "assistant", tools)
    shared = _shared_start(chosen, rejected)
    chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
    prompt = _prompt(fields, tools)
    if prompt and not shared:
        chosen, rejected = _response(prompt, chosen), _response(prompt, rejected)
    prompt = _joined(prompt, shared)
    if not prompt:
        raise BadRecord("missing_field", f'expected "{fields.names.prompt}"; found {fields.listed()}')
    for field, side in (("chosen", chosen), ("rejected", rejected)):
        _check_side(side, fields.name(field))
    return PreferencePair(with_system(fields, prompt), chosen, rejected, tools)


def _prompt(fields: RowFields, tools: tuple[str, ...]) -> Turns:
    """The turns of the field for the prompt; none where there is no such field."""
    if fields.value("prompt") is not None:
        return with_history(fields, read_turns(fields, "prompt", "user", tools))
    if fields.value("instruction") is not None:
        return with_history(fields, (instruction(fields),))
    return ()


def _shared_start(chosen: Turns, rejected: Turns) -> Turns:
    """Turns that open both conversations, up to the last one that is not the assistant's."""
    num_shared = 0
    for index, (left, right) in enumerate(zip(chosen, rejected, strict=False)):
        if not is_same((left,), (right,)):
            break
        if left.role != "assistant":
            num_shared = index + 1
    return chosen[:num_shared]


def _joined(prompt: Turns, shared: Turns) -> Turns:
    """The prompt's turns and the shared ones, none twice."""
    if shared and not any(message.content.strip() for message in prompt):
        return shared
    if shared and shared[0].role != "assistant":  # the sides are whole conversations, not what follows the prompt
        for start in range(len(shared) - len(prompt) + 1):
            if is_same(shared[start : start + len(prompt)], prompt):
                return shared
    return prompt + _after(prompt, shared)


def _response(prompt: Turns, side: Turns) -> Turns:
    """A side without the prompt's turns where it is a whole conversation, which the assistant never begins."""
    return side if side[0].role == "assistant" else _after(prompt, side)


def _after(prompt: Turns, turns: Turns) -> Turns:
    """``turns`` less those at their start that are the prompt's last ones."""
    for size in range(min(len(prompt), len(turns)), 0, -1):
        if is_same(prompt[-size:], turns[:size]):
            return turns[size:]
    return turns


def _check_side(side: Turns, name: str) -> None:
    if not side:
        raise BadRecord("empty", f'"{name}" is empty')
    if side[0].role != "assistant":
        raise BadRecord(
            "bad_messages",
            f'"{name}" goes on with a turn of the {side[0].role} that the prompt and the other side do not have',
        )
    check_end(side, f'"{name}"')
