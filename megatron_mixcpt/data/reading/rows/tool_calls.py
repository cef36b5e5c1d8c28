"""Tools and calls of tools: objects or JSON text in the data, JSON text in a record.

Tables (Parquet, Arrow) have one set of keys for all objects of a column: a call without an argument that another call
has gets a null there, which looks like an argument that *is* null. Such a null is kept where the definition of the tool
requires the argument, and removed elsewhere; both are counted. JSON Lines hold no such nulls: there a null is kept.
Tables that hold arguments as JSON text have no such question.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_mixcpt.data.reading.rows.row_fields import RowFields, type_name
from megatron_mixcpt.data.records import BadRecord, ToolCall


def read_tools(fields: RowFields) -> tuple[str, ...]:
    """The definitions of tools beside a row's messages, each as JSON text. Raises BadRecord."""
    value, name = fields.value("tools"), fields.name("tools")
    if value is None or isinstance(value, str) and not value.strip():
        return ()
    tools = _parsed(value, f'"{name}"')
    if not isinstance(tools, list):
        raise BadRecord("bad_tools", f'"{name}" is {type_name(tools)}, expected a list of tools')
    return tuple(_tool(tool, f'tool {number} of "{name}"', fields) for number, tool in enumerate(tools, start=1))


def read_calls(value: Any, where: str, tools: tuple[str, ...], fields: RowFields) -> tuple[ToolCall, ...]:
    """The calls of one turn: a list of calls, one call, or either as JSON text. Raises BadRecord naming ``where``."""
    calls = _parsed(value, f"a call of a tool in {where}")
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise BadRecord("bad_tools", f"the calls of tools in {where} are {type_name(calls)}, expected a list")
    return tuple(
        _call(call, f"call {number} of a tool in {where}", tools, fields) for number, call in enumerate(calls, start=1)
    )


def _parsed(value: Any, where: str) -> Any:
    """The value of JSON text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadRecord("bad_tools", f"{where} is text, but not JSON ({error})") from error


def _tool(value: Any, where: str, fields: RowFields) -> str:
    tool = _parsed(value, where)
    if not isinstance(tool, Mapping):
        raise BadRecord("bad_tools", f"{where} is {type_name(tool)}, expected an object")
    if fields.fills_nulls and not isinstance(value, str) and _has_null(tool):
        fields.note("nulls removed from definitions of tools")
        tool = _without_nulls(tool)
    return json.dumps(tool, ensure_ascii=False)


def _call(value: Any, where: str, tools: tuple[str, ...], fields: RowFields) -> ToolCall:
    outer = _parsed(value, where)
    if not isinstance(outer, Mapping):
        raise BadRecord("bad_tools", f"{where} is {type_name(outer)}, expected an object")
    call = outer["function"] if isinstance(outer.get("function"), Mapping) else outer
    name, identity = call.get("name"), outer.get("id") or ""
    if not isinstance(name, str) or not name:
        raise BadRecord("bad_tools", f'"name" of {where} is {type_name(name)}, expected the name of a tool')
    if not isinstance(identity, str):
        raise BadRecord("bad_tools", f'"id" of {where} is {type_name(identity)}, expected text')
    arguments = call.get("arguments")
    given = call.get("parameters") if arguments is None else arguments  # as Llama 3.1 writes its calls
    return ToolCall(name, _arguments(given, name, where, tools, fields), identity)


def _arguments(value: Any, name: str, where: str, tools: tuple[str, ...], fields: RowFields) -> str:
    """Arguments as JSON text; text stays as it is."""
    if value is None or isinstance(value, str) and not value.strip():
        return "{}"
    arguments = _parsed(value, f'"arguments" of {where}')
    if not isinstance(arguments, Mapping):
        raise BadRecord("bad_tools", f'"arguments" of {where} are {type_name(arguments)}, expected an object')
    if isinstance(value, str):
        return value
    if fields.fills_nulls and _has_null(arguments):
        arguments = _without_filled(arguments, _required(tools, name), fields)
    return json.dumps(arguments, ensure_ascii=False)


def _without_filled(arguments: Mapping[str, Any], required: set[str], fields: RowFields) -> dict[str, Any]:
    kept = {}
    for key, value in arguments.items():
        if value is not None:
            kept[key] = _without_nulls(value)
        elif key in required:
            kept[key] = None
            fields.note("null argument of a call kept, for its tool requires it")
    if kept != arguments:
        fields.note("null arguments of a call removed, as a table's filling")
    return kept


def _required(tools: tuple[str, ...], name: str) -> set[str]:
    """The arguments that the tool called ``name`` requires."""
    return {key for found, required in _requirements(tools) if found == name for key in required}


def _requirements(tools: tuple[str, ...]) -> Iterator[tuple[Any, list[str]]]:
    for text in tools:
        tool = json.loads(text)
        function = tool["function"] if isinstance(tool.get("function"), dict) else tool
        parameters = function.get("parameters")
        required = parameters.get("required") if isinstance(parameters, dict) else None
        yield function.get("name"), [key for key in required or [] if isinstance(key, str)]


def _has_null(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list) and any(_has_null(item) for item in value)


def _without_nulls(value: Any) -> Any:
    """A value without the keys of objects in it that are null."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
