"""The work of a run, cut into parts that workers take, finish and mark as finished.

A part is some megabytes of input: a range of one large file, or many small files. The cut depends on the inputs alone,
so that outputs do not depend on the number of workers and an interrupted run finds the parts it had finished.
"""

from dataclasses import dataclass

from megatron_mixcpt.data.reading.sources import Source
from megatron_mixcpt.errors import DataError

PART_BYTES = 8 << 20
MAX_PARTS = 2000
COMPRESSION_RATIO = 4


@dataclass(frozen=True)
class Segment:
    """A range of one file: bytes of plain JSONL, row groups of Parquet, all of any other file (``end`` is None)."""

    source: int
    """The file's place in the run's list of sources."""
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Part:
    """Segments of one kind, in order."""

    index: int
    kind: str
    is_first: bool
    """Whether it is the first of its kind."""
    segments: tuple[Segment, ...]
    weight: int
    """Bytes of input, about; for progress."""

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"part-{self.index:06d}"


def plan_parts(sources: list[Source]) -> list[Part]:
    """Cut sources (those of one kind together, in order) into parts. Raises DataError where Parquet is unreadable."""
    part_bytes = max(PART_BYTES, -(-sum(map(_weight, sources)) // MAX_PARTS))
    parts: list[Part] = []
    pending: list[Segment] = []
    weight = 0

    def finish() -> None:
        nonlocal pending, weight
        if pending:
            kind = sources[pending[0].source].kind
            is_first = not parts or parts[-1].kind != kind
            parts.append(Part(len(parts), kind, is_first, tuple(pending), weight))
        pending, weight = [], 0

    for index, source in enumerate(sources):
        for segment, segment_weight in _segments(index, source, part_bytes):
            if weight >= part_bytes or (pending and sources[pending[-1].source].kind != source.kind):
                finish()
            pending.append(segment)
            weight += segment_weight
    finish()
    return parts


def _weight(source: Source) -> int:
    return source.size * (COMPRESSION_RATIO if source.compression or source.format == "parquet" else 1) + 1


def _segments(index: int, source: Source, part_bytes: int) -> list[tuple[Segment, int]]:
    if source.format == "jsonl" and not source.compression and source.size > 0:
        bounds = [*range(0, source.size, part_bytes), source.size]
        return [(Segment(index, start, end), end - start) for start, end in zip(bounds, bounds[1:], strict=False)]
    if source.format == "parquet" and _weight(source) > part_bytes:
        return _row_group_segments(index, source, part_bytes)
    return [(Segment(index), _weight(source))]


def _row_group_segments(index: int, source: Source, part_bytes: int) -> list[tuple[Segment, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        num_groups = pq.read_metadata(source.path).num_row_groups
    except (OSError, pa.ArrowException) as error:
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{source.path}: not a readable Parquet file ({first_line}); copy the file again") from error
    per_group = _weight(source) // max(num_groups, 1)
    step = max(1, part_bytes // max(per_group, 1))
    starts = range(0, num_groups, step)
    return [(Segment(index, start, min(start + step, num_groups)), per_group * step) for start in starts]
