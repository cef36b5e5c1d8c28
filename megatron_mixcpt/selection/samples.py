"""Records become samples to score, or a reason why not; in the order of the input, in parts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.readers import is_blank, read_blocks
from megatron_mixcpt.data.reading.record_reader import RecordReader, Reject
from megatron_mixcpt.data.records import BadRecord, Conversation, PreferencePair, Record
from megatron_mixcpt.data.sample_id import sample_id, to_row
from megatron_mixcpt.selection.fas import Encoded

PART_SAMPLES = 512
"""Rows that are read and scored together: a killed run repeats at most one part, and batches are formed within one."""


class NumberedRecord(NamedTuple):
    """A row that became a record, or did not, and its place in the input."""

    source: Source
    line: int
    found: Record | Reject


@dataclass(frozen=True)
class CandidateSample:
    """A sample of the input: encoded, with its identity, or with the reason why it has no score."""

    kind: str
    source: str
    line: int
    encoded: Encoded | None = None
    id: str | None = None
    row: dict[str, Any] | None = None
    """The record with the default field names, as training and selection read it."""
    refusal: Refusal | None = None

    def described(self) -> dict[str, Any]:
        """Its place in the input, for the line of a file."""
        return {"kind": self.kind, "source": self.source, "line": self.line}


def count_rows(sources: Sequence[Source]) -> int:
    """Rows of the input that are not blank; reads all of it without looking into the rows."""
    blocks = ((source, block) for source in sources for block in read_blocks(source, frozenset()))
    return sum(not is_blank(source, row) for source, block in blocks for row in block)


def rows_of_parts(numbers: Iterable[int], num_rows: int) -> int:
    """How many of the rows of the input lie in parts of these numbers."""
    return sum(min(PART_SAMPLES, num_rows - number * PART_SAMPLES) for number in numbers)


def read_parts(sources: Sequence[Source], readers: Mapping[str, RecordReader]) -> Iterator[list[NumberedRecord]]:
    """Lists of at most ``PART_SAMPLES`` rows, in the order of the input, without blank lines.

    Raises DataError, naming file and line, at a bad record where ``--on-bad-record`` says so.
    """
    part: list[NumberedRecord] = []
    for kind, group in groupby(sources, key=lambda source: source.kind):
        for numbered in readers[kind].records(group):
            part.append(NumberedRecord(*numbered))
            if len(part) == PART_SAMPLES:
                yield part
                part = []
    if part:
        yield part


def make_samples(part: Sequence[NumberedRecord], encoder: ChatEncoder) -> list[CandidateSample]:
    """Encode a part."""
    found: dict[int, Encoded | Refusal] = {}
    conversations = {place: item.found for place, item in enumerate(part) if isinstance(item.found, Conversation)}
    pairs = {place: item.found for place, item in enumerate(part) if isinstance(item.found, PreferencePair)}
    found |= zip(conversations, encoder.encode_query_responses(list(conversations.values())), strict=True)
    found |= zip(pairs, encoder.encode_pairs(list(pairs.values())), strict=True)
    return [_sample(item, found.get(place)) for place, item in enumerate(part)]


def _sample(item: NumberedRecord, encoded: Encoded | Refusal | None) -> CandidateSample:
    where = (item.source.kind, str(item.source.path), item.line)
    if isinstance(item.found, Reject):
        return CandidateSample(*where, refusal=Refusal(item.found.reason, item.found.detail))
    assert isinstance(item.found, Conversation | PreferencePair)
    try:
        identity = sample_id(item.found)
    except BadRecord as error:
        return CandidateSample(*where, refusal=Refusal(error.reason, error.detail))
    if isinstance(encoded, Refusal):
        return CandidateSample(*where, id=identity, refusal=encoded)
    return CandidateSample(*where, encoded=encoded, id=identity, row=to_row(item.found))
