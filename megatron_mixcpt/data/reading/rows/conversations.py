"""Instruction samples: messages, prompt and response (or completion), or instruction, input and output."""

from dataclasses import replace
from typing import Any

from megatron_mixcpt.data.reading.rows.messages import check_end, read_messages, read_turns
from megatron_mixcpt.data.reading.rows.row_fields import RowFields, type_name
from megatron_mixcpt.data.reading.rows.tool_calls import read_tools
from megatron_mixcpt.data.records import BadRecord, Conversation, Message


def conversation(fields: RowFields) -> Conversation:
    """The conversation of a row. Raises BadRecord."""
    tools = read_tools(fields)
    if fields.value("messages") is not None:
        messages = read_messages(fields.value("messages"), fields.name("messages"), fields, tools)
    elif fields.value("response") is not None:
        response = with_reasoning(fields, read_turns(fields, "response", "assistant", tools))
        messages = (*with_history(fields, read_turns(fields, "prompt", "user", tools)), *response)
    elif fields.value("output") is not None:
        response = with_reasoning(fields, read_turns(fields, "output", "assistant", tools))
        messages = (*with_history(fields, (instruction(fields),)), *response)
    else:
        names = fields.names
        pairs = f'"{names.prompt}" with "{names.response}", or "{names.instruction}" with "{names.output}"'
        raise BadRecord("missing_field", f'expected "{names.messages}", {pairs}; found {fields.listed()}')
    messages = with_system(fields, messages)
    check_end(messages, "the response")
    return Conversation(messages, tools)


def instruction(fields: RowFields) -> Message:
    """Alpaca's instruction, with its input after a blank line. Raises BadRecord."""
    extra = fields.optional_text("input")
    text = fields.text("instruction")
    return Message("user", f"{text}\n\n{extra}" if extra else text)


def with_system(fields: RowFields, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Turns after the system's that stands beside them. Raises BadRecord where they have another of their own."""
    system = fields.optional_text("system")
    if not system.strip():
        return messages
    if messages[0].role != "system":
        return (Message("system", system), *messages)
    if messages[0].content.strip() != system.strip():
        raise BadRecord("bad_messages", f'"{fields.name("system")}" is not the system message that stands in the turns')
    return messages


def with_history(fields: RowFields, query: tuple[Message, ...]) -> tuple[Message, ...]:
    """A query after Alpaca's history, a list of pairs [question, answer]. Raises BadRecord."""
    value, name = fields.value("history"), fields.name("history")
    if not value:
        return query
    if not isinstance(value, list):
        raise BadRecord("not_text", f'"{name}" is {type_name(value)}, expected a list of [question, answer]')
    num_system = next((place for place, message in enumerate(query) if message.role != "system"), len(query))
    earlier = [
        message for number, pair in enumerate(value, start=1) for message in _pair(pair, f'item {number} of "{name}"')
    ]
    return (*query[:num_system], *earlier, *query[num_system:])


def _pair(value: Any, where: str) -> tuple[Message, Message]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise BadRecord("not_text", f"{where} is not a question and an answer")
    return Message("user", value[0]), Message("assistant", value[1])


def with_reasoning(fields: RowFields, response: tuple[Message, ...]) -> tuple[Message, ...]:
    """A response with the reasoning that stands in a field beside it. Raises BadRecord."""
    name = fields.names.reasoning  # none of the other names, which outside of a message mean many things
    reasoning = fields.row.get(name)
    if not reasoning or response[-1].reasoning == reasoning:
        return response
    if not isinstance(reasoning, str) or response[-1].reasoning:
        raise BadRecord("bad_messages", f'"{name}" is not the one reasoning of the response, as text')
    fields.value("reasoning")
    return (*response[:-1], replace(response[-1], reasoning=reasoning))
