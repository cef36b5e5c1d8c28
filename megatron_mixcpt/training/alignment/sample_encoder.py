"""Reads and encodes parts of the files; each worker process has one."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.data.chat.encoding import Refusal
from megatron_mixcpt.data.datasets.encoded_samples import EncodedPart, Sample
from megatron_mixcpt.data.reading.parts import Part, Segment
from megatron_mixcpt.data.reading.record_reader import RecordReader, Reject
from megatron_mixcpt.data.records import BadRecord, Conversation, PreferencePair
from megatron_mixcpt.data.sample_id import sample_id
from megatron_mixcpt.training.alignment.sample_recipe import SampleRecipe

BATCH_RECORDS = 256
"""Records that are encoded together: the tokenizer is faster on many texts."""


@dataclass
class SegmentCounts:
    """What a segment of a file held."""

    source: int
    lines: int = 0
    """Blank ones included."""
    records: int = 0
    num_rejects: int = 0
    """Of the part's rejects, how many are this segment's."""


class SampleEncoder:
    """Makes samples of parts of the files.

    Args:
        recipe: what the samples are made from.
    """

    def __init__(self, recipe: SampleRecipe) -> None:
        self._recipe = recipe
        self._reader = RecordReader(recipe.kind, recipe.records, recipe.reading)

    def encode(self, part: Part) -> tuple[EncodedPart, list[SegmentCounts]]:
        """The samples of a part, and what each of its segments held; the lines of rejects count from the segment's.

        Raises DataError at the first bad record where the settings say so.
        """
        samples: list[tuple[str, Sample]] = []
        rejects: list[dict[str, Any]] = []
        notes: Counter[str] = Counter()
        segments: list[SegmentCounts] = []
        for segment in part.segments:
            num_before = len(rejects)
            for line, outcome in self._outcomes(segment):
                if isinstance(outcome, Reject | Refusal):
                    rejects.append({"line": line, "reason": outcome.reason, "detail": outcome.detail})
                else:
                    name, sample, named = outcome
                    samples.append((name, sample))
                    notes.update(named)
            rejects[num_before:] = sorted(rejects[num_before:], key=lambda reject: reject["line"])
            counts = self._reader.take_counts()
            notes += counts.notes
            found = len(rejects) - num_before
            segments.append(SegmentCounts(segment.source, counts.lines, counts.records, found))
        return EncodedPart.of(samples, rejects, notes), segments

    def _outcomes(
        self, segment: Segment
    ) -> Iterator[tuple[int, tuple[str, Sample, tuple[str, ...]] | Reject | Refusal]]:
        """Each record's line in the segment, and its sample with id and notes, or why there is none."""
        waiting: list[tuple[int, str, Conversation | PreferencePair]] = []
        source = self._recipe.sources[segment.source]
        for line, record in self._reader.records_of_range(source, segment.start, segment.end):
            if isinstance(record, Reject):
                yield line, record
                continue
            assert isinstance(record, Conversation | PreferencePair)
            try:
                waiting.append((line, sample_id(record), record))
            except BadRecord as error:
                yield line, Reject(error.reason, error.detail)
            if len(waiting) >= BATCH_RECORDS:
                yield from self._encoded(waiting)
                waiting.clear()
        yield from self._encoded(waiting)

    def _encoded(
        self, waiting: list[tuple[int, str, Conversation | PreferencePair]]
    ) -> Iterator[tuple[int, tuple[str, Sample, tuple[str, ...]] | Refusal]]:
        encoded = self._recipe.encode([record for _, _, record in waiting])
        for (line, name, _), found in zip(waiting, encoded, strict=True):
            yield line, found if isinstance(found, Refusal) else (name, *found)
