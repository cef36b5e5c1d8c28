"""Rows of data files become samples to score, or a reason why not; in the order of the input, in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal
from megatron_mixcpt.data.reading.field_names import record_fields
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.readers import Row, is_blank, parse, read_blocks
from megatron_mixcpt.data.reading.record_maker import Dropped, RecordMaker
from megatron_mixcpt.data.records import BadRecord, Conversation, PreferencePair
from megatron_mixcpt.data.sample_id import sample_id, to_row
from megatron_mixcpt.selection.fas import Encoded
from megatron_mixcpt.selection.settings import ScoreSettings

PART_SAMPLES = 512
"""Rows that are read and scored together: a killed run repeats at most one part, and batches are formed within one."""


@dataclass(frozen=True)
class NumberedRow:
    """A row and its place in the input."""

    source: Source
    line: int
    row: Row


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


def read_parts(
    sources: list[Source], makers: dict[str, RecordMaker], settings: ScoreSettings
) -> Iterator[list[NumberedRow]]:
    """Lists of at most ``PART_SAMPLES`` :class:`NumberedRow`, in the order of the input, without blank lines."""
    part: list[NumberedRow] = []
    for source in sources:
        names = settings.kinds[source.kind].names
        fields = record_fields(source.kind, names) | makers[source.kind].extra_fields
        rows = (row for block in read_blocks(source, fields) for row in block)
        for line, row in enumerate(rows, start=1):
            if is_blank(source, row):
                continue
            part.append(NumberedRow(source, line, row))
            if len(part) == PART_SAMPLES:
                yield part
                part = []
    if part:
        yield part


def make_sample(item: NumberedRow, maker: RecordMaker, encoder: ChatEncoder) -> CandidateSample:
    """Convert, check and encode one row."""
    where = (item.source.kind, str(item.source.path), item.line)
    try:
        record = maker.make(parse(item.source, item.row), item.source.format.fills_nulls)
        assert isinstance(record, Conversation | PreferencePair)
        identity = sample_id(record)
    except (BadRecord, Dropped) as error:
        return CandidateSample(*where, refusal=Refusal(error.reason, error.detail))
    encoded: Encoded | Refusal = (
        encoder.encode_query_responses([record])[0]
        if isinstance(record, Conversation)
        else encoder.encode_pairs([record])[0]
    )
    if isinstance(encoded, Refusal):
        return CandidateSample(*where, id=identity, refusal=encoded)
    return CandidateSample(*where, encoded=encoded, id=identity, row=to_row(record))
