"""The rows of Parquet and Arrow files, as objects, in memory that does not grow with the file."""

from collections.abc import Iterator, Set
from typing import Any

from megatron_mixcpt.data.long_text import LONG_BYTES, LongText
from megatron_mixcpt.data.reading.sources import Source

BUFFER_BYTES = 1 << 20
MAX_BATCH_ROWS = 256
BATCH_BYTES = 4 << 20

TableRow = dict[str, Any] | bytes
"""A row, or bytes that are not UTF-8 in place of one whose text is not."""


def parquet_blocks(
    source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
) -> Iterator[list[TableRow]]:
    """Rows of the row groups from ``start`` to ``end`` (None: the last), with the columns named in ``fields`` alone.

    Raises OSError where the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            columns = [name for name in file.schema_arrow.names if fields is None or name in fields] or None
            for group in range(start, file.num_row_groups if end is None else end):
                metadata = file.metadata.row_group(group)
                num_rows = _batch_rows(metadata.total_byte_size, metadata.num_rows)
                for batch in file.iter_batches(num_rows, row_groups=[group], columns=columns, use_threads=False):
                    yield _rows_of(batch, keep_long)
    except pa.ArrowException as error:
        raise OSError(str(error).partition("\n")[0]) from error


def arrow_blocks(source: Source, keep_long: bool) -> Iterator[list[TableRow]]:
    """Rows of a file in Arrow's stream format, as ``datasets`` saves it. Raises OSError where it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(source.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                num_rows = _batch_rows(batch.nbytes, batch.num_rows)
                for start in range(0, batch.num_rows, num_rows):
                    yield _rows_of(batch.slice(start, num_rows), keep_long)
    except pa.ArrowException as error:
        raise OSError(str(error).partition("\n")[0]) from error


def _batch_rows(num_bytes: int, num_rows: int) -> int:
    """How many rows to hold as objects at once, of a table of so many bytes and rows."""
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES * num_rows // max(1, num_bytes)))


def _rows_of(batch: Any, keep_long: bool) -> list[TableRow]:
    """A batch's rows as objects. A string that is not UTF-8 becomes bytes, so that only its own row is lost."""
    try:
        if keep_long and batch.nbytes > LONG_BYTES:
            return [_row_with_long(batch, index) for index in range(batch.num_rows)]
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row_of(batch.slice(index, 1), keep_long) for index in range(batch.num_rows)]


def _row_of(row: Any, keep_long: bool) -> TableRow:
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
