"""Arrow's stream format, as the ``datasets`` library saves it."""

from collections.abc import Iterator, Set

from megatron_mixcpt.data.reading.formats.table_rows import batch_rows, rows_of
from megatron_mixcpt.data.reading.input_format import InputFormat, Row, Source


class Arrow(InputFormat):
    """An Arrow file; cannot be split, and all of its columns are read."""

    name = "arrow"
    suffixes = (".arrow",)
    fills_nulls = True

    def read(
        self, source: Source, fields: Set[str] | None, start: int, end: int | None, keep_long: bool
    ) -> Iterator[list[Row]]:
        """The rows of the file. Raises OSError where it is damaged."""
        import pyarrow as pa

        try:
            with pa.memory_map(str(source.path)) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    num_rows = batch_rows(batch.nbytes, batch.num_rows)
                    for first in range(0, batch.num_rows, num_rows):
                        yield rows_of(batch.slice(first, num_rows), keep_long)
        except pa.ArrowException as error:
            raise OSError(str(error).partition("\n")[0]) from error
