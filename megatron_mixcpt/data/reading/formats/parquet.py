"""Parquet: only the columns that are used are read, and files are split by row groups."""

from collections.abc import Iterator, Set

from megatron_mixcpt.data.reading.formats.table_rows import batch_rows, rows_of
from megatron_mixcpt.data.reading.input_format import FileRange, InputFormat, Row, Source
from megatron_mixcpt.errors import DataError

BUFFER_BYTES = 1 << 20


class Parquet(InputFormat):
    """A Parquet file; its ranges count row groups."""

    name = "parquet"
    suffixes = (".parquet",)
    fills_nulls = True
    is_packed = True

    def read(
        self, source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
    ) -> Iterator[list[Row]]:
        """The rows of the row groups from ``start`` to ``end``. Raises OSError where the file is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(source.path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
                columns = [name for name in file.schema_arrow.names if fields is None or name in fields] or None
                for group in range(start, file.num_row_groups if end is None else end):
                    metadata = file.metadata.row_group(group)
                    num_rows = batch_rows(metadata.total_byte_size, metadata.num_rows)
                    for batch in file.iter_batches(num_rows, row_groups=[group], columns=columns, use_threads=False):
                        yield rows_of(batch, keep_long)
        except pa.ArrowException as error:
            raise OSError(str(error).partition("\n")[0]) from error

    def ranges(self, source: Source, range_bytes: int) -> list[FileRange]:
        """Groups of row groups. Raises DataError where the file cannot be read."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if source.unpacked_bytes <= range_bytes:
            return super().ranges(source, range_bytes)
        try:
            num_groups = pq.read_metadata(source.path).num_row_groups
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{source.path}: not a readable Parquet file ({reason}); copy the file again") from error
        per_group = source.unpacked_bytes // max(num_groups, 1)
        step = max(1, range_bytes // max(per_group, 1))
        starts = range(0, num_groups, step)
        return [FileRange(start, min(start + step, num_groups), per_group * step) for start in starts]

    def lines_before(self, source: Source, start: int) -> int:
        """The rows of the row groups before ``start``."""
        from pyarrow.parquet import read_metadata

        metadata = read_metadata(source.path)
        return sum(metadata.row_group(group).num_rows for group in range(start))
