"""Rows of tables (Parquet, Arrow) as objects, in memory that does not grow with the file."""

from typing import Any

from megatron_mixcpt.data.long_text import LONG_BYTES, LongText
from megatron_mixcpt.data.reading.input_format import Row

MAX_BATCH_ROWS = 256
BATCH_BYTES = 4 << 20


def batch_rows(num_bytes: int, num_rows: int) -> int:
    """How many rows to hold as objects at once, of a table of ``num_bytes`` and ``num_rows``."""
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


def rows_of(batch: Any, keep_long: bool) -> list[Row]:
    """A batch's rows as objects. A row with a string that is not UTF-8 becomes bytes, so that only that row is lost."""
    try:
        if keep_long and batch.nbytes > LONG_BYTES:
            return [_row_with_long(batch, index) for index in range(batch.num_rows)]
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row_of(batch.slice(index, 1), keep_long) for index in range(batch.num_rows)]


def _row_of(row: Any, keep_long: bool) -> Row:
    try:
        return _row_with_long(row, 0) if keep_long else row.to_pylist()[0]
    except UnicodeDecodeError:
        return b"\xff"


def _row_with_long(batch: Any, index: int) -> dict[str, Any]:
    """One row; strings of more than ``LONG_BYTES`` become long texts of the table's own bytes."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        value = column[index]
        data = (value.as_buffer() if hasattr(value, "as_buffer") else None) or b""
        is_long = len(data) > LONG_BYTES
        row[name] = LongText(memoryview(data), 0, len(data), is_json=False) if is_long else value.as_py()
    return row
