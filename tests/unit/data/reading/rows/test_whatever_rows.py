"""Whatever a row holds, it becomes a record that can be written back as it was, or is refused by name."""

import json
import random
from typing import Any

import pytest

from megatron_mixcpt.data.reading.field_names import FIELDS_OF_KIND, FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import REJECT_REASONS, BadRecord, Conversation
from megatron_mixcpt.data.sample_id import to_row

ATOMS = (None, True, 0, 1, 0.5, "", "x", "user", "gpt", '{"name": "f", "arguments": {"x": null}}', "[1]", "{", [], {})
KEYS = (
    *("role", "content", "from", "value", "name", "type", "text", "tool_calls", "function", "arguments", "id"),
    *("parameters", "required", "reasoning_content", "thinking", "weight", "train", "tool_call_id", "function_call"),
)
ROLES = ("user", "assistant", "system", "tool", "function_call", "gpt")


class Rows:
    """Random rows, most of them odd in one place or another."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def _value(self, depth: int = 0) -> Any:
        draw = self._random.random()
        if depth > 3 or draw < 0.5:
            return self._random.choice(ATOMS)
        if draw < 0.7:
            return [self._value(depth + 1) for _ in range(self._random.randint(0, 3))]
        return {self._random.choice(KEYS): self._value(depth + 1) for _ in range(self._random.randint(0, 3))}

    def _turn(self) -> dict[str, Any]:
        content = self._random.choice(["hi", "A", None, self._value(), [{"type": "text", "text": "x"}]])
        extra = {self._random.choice(KEYS): self._value()} if self._random.random() < 0.4 else {}
        return {"role": self._random.choice(ROLES), "content": content} | extra

    def _side(self) -> Any:
        turns = [self._turn() for _ in range(self._random.randint(0, 3))]
        return self._random.choice(["x", turns, [*turns, {"role": "gpt", "content": "y"}], self._value()])

    def row(self, kind: str) -> dict[str, Any]:
        """A row with some of the fields of a kind."""
        fields = [getattr(FieldNames, field) for field in FIELDS_OF_KIND[kind]]
        needed = ["chosen", "rejected"] if kind == "dpo" else ["messages"]
        return {name: self._side() for name in [*self._random.sample(fields, 2), *needed]}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_any_row_is_a_record_or_refused_by_name(kind: str) -> None:
    rows, num_records = Rows(0), 0
    for number in range(1500):
        row = rows.row(kind)
        try:
            record = to_record(kind, row, FieldNames(), fills_nulls=number % 2 == 0)
        except BadRecord as error:
            assert error.reason in REJECT_REASONS and error.detail
            continue
        num_records += 1
        assert to_record(kind, json.loads(json.dumps(to_row(record))), FieldNames()) == record, row
        last = record.messages[-1] if isinstance(record, Conversation) else record.chosen[-1]
        assert last.role == "assistant"
    assert num_records > 20
