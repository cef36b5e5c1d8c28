"""The rows of Parquet and Arrow files, as objects, in memory that does not grow with the file."""

from collections.abc import Iterator, Set
from typing import Any

from megatron_mixcpt.data.sources import Source

BUFFER_BYTES = 1 << 20
ROWS_PER_BATCH = 256

TableRow = dict[str, Any] | bytes
"""A row, or bytes that are not UTF-8 in place of one whose text is not."""


def parquet_blocks(source: Source, fields: Set[str] | None, start: int, end: int | None) -> Iterator[list[TableRow]]:
    """Rows of the row groups from ``start`` to ``end`` (None: the last), with the columns named in ``fields`` alone.

    Raises OSError where the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            groups = list(range(start, file.num_row_groups if end is None else end))
            columns = [name for name in file.schema_arrow.names if fields is None or name in fields] or None
            for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=columns, use_threads=False):
                yield _rows_of(batch)
    except pa.ArrowException as error:
        raise OSError(str(error).partition("\n")[0]) from error


def arrow_blocks(source: Source) -> Iterator[list[TableRow]]:
    """Rows of a file in Arrow's stream format, as ``datasets`` saves it. Raises OSError where it is damaged."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(source.path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield _rows_of(batch.slice(start, ROWS_PER_BATCH))
    except pa.ArrowException as error:
        raise OSError(str(error).partition("\n")[0]) from error


def _rows_of(batch: Any) -> list[TableRow]:
    """A batch's rows as objects. A string that is not UTF-8 becomes bytes, so that only its own row is lost."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_row_of(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _row_of(row: Any) -> TableRow:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError:
        return b"\xff"
