"""The fields of one row, as what makes a record of it asks for them, and what it notes on the way."""

from collections.abc import Mapping
from typing import Any

from megatron_mixcpt.data.reading.field_names import FieldNames, lookup
from megatron_mixcpt.data.records import BadRecord

COUNTED_IF_UNUSED = ("system", "history", "input", "tools", "reasoning")
"""Fields that say something of their own; ``prompt`` beside ``messages`` repeats what is there."""


class RowFields:
    """Fields by what they are for (the fields of ``FieldNames``); remembers which were asked for."""

    def __init__(self, row: Mapping[str, Any], names: FieldNames, notes: list[str], fills_nulls: bool):
        """``fills_nulls``: the row is of a table, which has every key of a column in each of its objects."""
        self.row = row
        self.names = names
        self.fills_nulls = fills_nulls
        self._notes = notes
        self._used: set[str] = set()

    def note(self, name: str) -> None:
        """Count something that is done to a record that is used all the same."""
        self._notes.append(name)

    def value(self, field: str) -> Any:
        """The value of a field; None where the row has none."""
        self._used.add(field)
        for name in self.names.alternatives[field]:
            if (value := lookup(self.row, name)) is not None:
                return value
        return None

    def name(self, field: str) -> str:
        """The name under which the row has a field, for messages."""
        names = self.names.alternatives[field]
        return next((name for name in names if lookup(self.row, name) is not None), names[0])

    def text(self, field: str) -> str:
        """The value of a field that holds text. Raises BadRecord."""
        value = self.value(field)
        if isinstance(value, str):
            return value
        if value is None:
            raise BadRecord("missing_field", f'expected "{self.name(field)}"; found {self.listed()}')
        raise BadRecord("not_text", f'"{self.name(field)}" is {type_name(value)}, expected text')

    def optional_text(self, field: str) -> str:
        """The value of a field that holds text, or nothing. Raises BadRecord."""
        return "" if self.value(field) is None else self.text(field)

    def note_unused(self) -> None:
        """Count the fields that say something and were not asked for."""
        for field in COUNTED_IF_UNUSED:
            if field not in self._used and lookup(self.row, name := getattr(self.names, field)):
                self.note(f'field "{name}" not used')

    def listed(self) -> str:
        """The names of the row's fields, for messages."""
        names = [name if value is not None else f"{name} (null)" for name, value in self.row.items()]
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no field at all"


def type_name(value: Any) -> str:
    """What a value is, for messages."""
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")
