"""Tools and their calls, as objects and as JSON text; nulls that a table fills in are told from genuine ones."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_reader import RecordReader
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import BadRecord, Conversation, ToolCall

Q = {"role": "user", "content": "q"}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["y"]}}


def calling(calls: object, **row: object) -> dict:
    return {"messages": [Q, {"role": "assistant", "content": "c", "tool_calls": calls}], **row}


def calls_of(calls: object, **row: object) -> tuple[ToolCall, ...]:
    record = to_record("sft", calling(calls, **row), FieldNames())
    assert isinstance(record, Conversation)
    return record.messages[1].tool_calls


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f", "arguments": {"x": 1, "é": None}}, '{"x": 1, "é": null}'),
        ({"name": "f", "arguments": '{ "x":1}'}, '{ "x":1}'),
        ({"type": "function", "function": {"name": "f", "arguments": {}}}, "{}"),
        ({"name": "f", "arguments": None}, "{}"),
        ({"name": "f", "parameters": {"x": 1}}, '{"x": 1}'),
    ],
)
def test_calls_are_kept_as_json_text(call: dict, arguments: str) -> None:
    assert calls_of([call]) == calls_of(json.dumps([call])) == calls_of(call) == (ToolCall("f", arguments),)


@pytest.mark.parametrize(
    ("calls", "detail"),
    [
        ([{"arguments": {}}], '"name" of call 1 of a tool in message 2 of "messages" is null'),
        ([{"name": "f", "arguments": "{"}], '"arguments" of call 1 .* is text, but not JSON'),
        ([{"name": "f", "arguments": [1]}], "are a list, expected an object"),
        ([{"name": "f", "id": 3}], '"id" of call 1 .* is a number'),
        (3, "are a number, expected a list"),
        ([3], "is a number, expected an object"),
    ],
)
def test_calls_that_cannot_be_read(calls: object, detail: str) -> None:
    with pytest.raises(BadRecord, match=detail) as caught:
        calls_of(calls)
    assert caught.value.reason == "bad_tools"


def test_tools_stand_beside_messages() -> None:
    rows = [calling([], tools=[TOOL]), calling([], tools=json.dumps([TOOL])), calling([], functions=[json.dumps(TOOL)])]
    assert {to_record("sft", row, FieldNames()).tools for row in rows} == {(json.dumps(TOOL),)}
    assert to_record("sft", calling([], tools="[]"), FieldNames()).tools == ()
    for tools in ("none", {"f": 1}, [3]):
        with pytest.raises(BadRecord) as caught:
            to_record("sft", calling([], tools=tools), FieldNames())
        assert caught.value.reason == "bad_tools"


def from_parquet(folder: Path, rows: list[dict]) -> tuple[list[Conversation], Counter[str]]:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    reader = RecordReader("sft", KindSettings(), ReadingSettings())
    return [record for *_, record in reader.records(find_sources("sft", [str(folder)]))], reader.counts.notes


def test_nulls_that_a_table_fills_in_are_removed_and_counted(tmp_path: Path) -> None:
    rows = [calling([{"name": "f", "arguments": {"x": 1}}]), calling([{"name": "g", "arguments": {"z": [{"w": 2}]}}])]
    records, notes = from_parquet(tmp_path, rows)
    assert [record.messages[1].tool_calls for record in records] == [
        (ToolCall("f", '{"x": 1}'),),
        (ToolCall("g", '{"z": [{"w": 2}]}'),),
    ]
    assert notes == {"null arguments of a call removed, as a table's filling": 2}


def test_a_null_that_the_tool_requires_is_genuine(tmp_path: Path) -> None:
    row = calling([{"name": "f", "arguments": {"x": 1, "y": None}}, {"name": "g", "arguments": {"y": None}}])
    [record], notes = from_parquet(tmp_path, [row | {"tools": json.dumps([TOOL])}])
    assert [call.arguments for call in record.messages[1].tool_calls] == ['{"x": 1, "y": null}', "{}"]
    assert notes == {
        "null argument of a call kept, for its tool requires it": 1,
        "null arguments of a call removed, as a table's filling": 1,
    }


def test_definitions_in_a_table_lose_its_filling(tmp_path: Path) -> None:
    tools = [{"name": "f", "parameters": {"a": {"type": "int"}}}, {"name": "g", "parameters": {"b": {"type": "int"}}}]
    [record], notes = from_parquet(tmp_path, [calling([{"name": "f", "arguments": "{}"}], tools=tools)])
    assert [json.loads(tool) for tool in record.tools] == tools
    assert notes == {"nulls removed from definitions of tools": 1}
