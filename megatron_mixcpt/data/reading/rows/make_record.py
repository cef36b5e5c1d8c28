"""How a row of a data file becomes a record.

=====  ==========================================================================================================
kind   rows accepted (field names can be changed, :class:`FieldNames`; some have other names, ``OTHER_NAMES``)
=====  ==========================================================================================================
cpt    ``{"text"}``
sft    ``{"messages": [{"role", "content"}, ...]}``, ``{"conversations": [{"from", "value"}, ...]}``, ``{"prompt",
       "response"}``, ``{"prompt", "completion"}``, ``{"instruction", "input", "output"}``; ``system``, ``tools``, and
       ``history`` beside a prompt or an instruction
dpo    ``{"prompt", "chosen", "rejected"}``: each a string or a list of messages, see ``preferences.py``
=====  ==========================================================================================================
"""

from collections.abc import Callable, Mapping
from typing import Any

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.conversations import conversation
from megatron_mixcpt.data.reading.rows.preferences import preference_pair
from megatron_mixcpt.data.reading.rows.row_fields import RowFields, type_name
from megatron_mixcpt.data.records import BadRecord, Document, Record


def to_record(
    kind: str, row: Any, names: FieldNames, notes: list[str] | None = None, fills_nulls: bool = False
) -> Record:
    """Make a record of ``kind`` from a parsed row. Raises BadRecord.

    Args:
        kind: ``cpt``, ``sft`` or ``dpo``.
        row: an object of JSON, or a table's row.
        names: what the fields are called.
        notes: gets the names of what is done to the record, and of what the row says and is not used.
        fills_nulls: whether the row is of a table, see ``tool_calls.py``.
    """
    if not isinstance(row, Mapping):
        raise BadRecord("invalid_json", f"expected an object, found {type_name(row)}")
    makers: dict[str, Callable[[RowFields], Record]] = {
        "cpt": _document,
        "sft": conversation,
        "dpo": preference_pair,
    }
    fields = RowFields(row, names, [] if notes is None else notes, fills_nulls)
    record = makers[kind](fields)
    if kind != "cpt":
        fields.note_unused()
    return record


def _document(fields: RowFields) -> Document:
    value = fields.value("text")
    return Document(value if isinstance(value, LongText) else fields.text("text"))
