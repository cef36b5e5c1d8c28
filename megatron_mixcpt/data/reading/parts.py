"""The work of a run, cut into parts that workers take, finish and mark as finished.

A part is some megabytes of input: a range of one large file, or many small files. The cut depends on the inputs alone,
so that outputs do not depend on the number of workers and an interrupted run finds the parts it had finished.
"""

from dataclasses import dataclass

from megatron_mixcpt.data.reading.input_format import Source

PART_BYTES = 8 << 20
MAX_PARTS = 2000


@dataclass(frozen=True)
class Segment:
    """A range of one file, in units of its format; ``end`` is None at the file's end."""

    source: int
    """The file's place in the run's list of sources."""
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Part:
    """Segments of one dataset, in order."""

    index: int
    dataset: str
    """As :attr:`Source.dataset`: a kind, or a named source of one."""
    is_first: bool
    """Whether it is the first of its dataset."""
    segments: tuple[Segment, ...]
    weight: int
    """Bytes of input, about; for progress."""

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"part-{self.index:06d}"


def plan_parts(sources: list[Source], part_bytes: int | None = None) -> list[Part]:
    """Cut sources (those of one dataset together, in order) into parts. Raises DataError where one is unreadable."""
    part_bytes = max(part_bytes or PART_BYTES, -(-sum(source.unpacked_bytes for source in sources) // MAX_PARTS))
    parts: list[Part] = []
    pending: list[Segment] = []
    weight = 0

    def finish() -> None:
        nonlocal pending, weight
        if pending:
            dataset = sources[pending[0].source].dataset
            is_first = not parts or parts[-1].dataset != dataset
            parts.append(Part(len(parts), dataset, is_first, tuple(pending), weight))
        pending, weight = [], 0

    for index, source in enumerate(sources):
        for start, end, segment_weight in source.format.ranges(source, part_bytes):
            if weight >= part_bytes or (pending and sources[pending[-1].source].dataset != source.dataset):
                finish()
            pending.append(Segment(index, start, end))
            weight += segment_weight
    finish()
    return parts
