"""Rows of tables (Parquet, Arrow) as objects, in memory that does not grow with the file.

Strings, also dictionary-encoded ones and those that a writer stored as binary, become text; structs and maps become
objects, lists lists.
"""

from typing import Any

from megatron_mixcpt.data.long_text import LONG_BYTES, LongText
from megatron_mixcpt.data.reading.input_format import Row
from megatron_mixcpt.data.records import BadRecord

MAX_BATCH_ROWS = 256
BATCH_BYTES = 4 << 20


def batch_rows(num_bytes: int, num_rows: int) -> int:
    """How many rows to hold as objects at once, of a table of ``num_bytes`` and ``num_rows``."""
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


def rows_of(batch: Any, keep_long: bool) -> list[Row]:
    """A batch's rows as objects; in place of one that cannot be read the reason, so that only that row is lost."""
    try:
        if keep_long and batch.nbytes > LONG_BYTES:
            return [_row_with_long(batch, index) for index in range(batch.num_rows)]
        rows = batch.to_pylist(maps_as_pydicts="strict")
        return [_texts(row) for row in rows] if _has_binary(batch.schema) else rows
    except (UnicodeDecodeError, KeyError):
        return [_row_of(batch.slice(index, 1), keep_long) for index in range(batch.num_rows)]


def _row_of(row: Any, keep_long: bool) -> Row:
    try:
        return _row_with_long(row, 0) if keep_long else _texts(row.to_pylist(maps_as_pydicts="strict")[0])
    except UnicodeDecodeError as error:
        return BadRecord("not_utf8", f"byte {error.start + 1} of a string is not UTF-8")
    except KeyError:  # what pyarrow raises for a map
        return BadRecord("repeated_key", "a key stands twice in one map")


def _row_with_long(batch: Any, index: int) -> dict[str, Any]:
    """One row; strings of more than ``LONG_BYTES`` become long texts of the table's own bytes."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        value = column[index]
        data = (value.as_buffer() if hasattr(value, "as_buffer") else None) or b""
        is_long = len(data) > LONG_BYTES
        row[name] = (
            LongText(memoryview(data), 0, len(data), is_json=False)
            if is_long
            else _texts(value.as_py(maps_as_pydicts="strict"))
        )
    return row


def _has_binary(schema: Any) -> bool:
    """Whether a column holds bytes, however deep."""
    return any("binary" in str(field.type) for field in schema)


def _texts(value: Any) -> Any:
    """A value with the bytes in it as text. Raises UnicodeDecodeError."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {name: _texts(item) for name, item in value.items()}
    return [_texts(item) for item in value] if isinstance(value, list) else value
