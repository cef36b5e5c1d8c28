"""A row becomes the text of a sample, or the reason why it does not: convert, filter, take templates off, unify, draw.

What a row passes, in this order: the preset's conversion and the filter, the record's shape, the chat templates, the
unified format, the drawn fraction, the test sets. Duplicates and limits on tokens come when all samples are there.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.data.dataset_names import kind_of
from megatron_mixcpt.data.long_text import LongText, slices
from megatron_mixcpt.data.preprocessing.decontaminate import TestSets
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.record_maker import Dropped, RecordMaker
from megatron_mixcpt.data.records import BadRecord

ASCII_SPACE = " \t\n\r\x0b\x0c"
HASHED_AT_ONCE = 1 << 20  # characters


@dataclass(frozen=True, slots=True)
class Sample:
    """The text of a sample, and 128 bits that are the same for texts taken as equal."""

    text: str | LongText
    digest: bytes


class SampleMaker:
    """Makes samples of one dataset; ``notes`` counts what was done to them, by name."""

    def __init__(self, dataset: str, settings: PreprocessSettings, test_sets: TestSets | None):
        chosen = settings.datasets[dataset]
        rules = settings.reading.rules
        self._records = RecordMaker(kind_of(dataset), chosen, rules, keeps_equal_sides=True)
        self._below = round(chosen.fraction * 2**64)
        self._test_sets = test_sets
        self.notes = self._records.notes
        self.extra_fields = self._records.extra_fields
        """Columns needed beyond those of the record itself."""

    def make(self, content: Any, fills_nulls: bool = False) -> Sample:
        """The sample of a parsed row. Takes and raises what :meth:`RecordMaker.make` does."""
        record = self._records.make(content, fills_nulls)
        text = unified_text(record)
        digest = self._digest(text)
        if int.from_bytes(digest[16:24], "little") >= self._below:
            raise Dropped("not_drawn")
        if self._test_sets and (found := self._test_sets.shared_words(text)):
            raise Dropped("contaminated", found)
        return Sample(text, digest[:16])

    @staticmethod
    def _digest(text: str | LongText) -> bytes:
        """sha256 of a text less outer white space, with plain line ends. Raises BadRecord."""
        digest, space, has_begun, is_empty, place = hashlib.sha256(), "", False, True, 0
        for piece in slices(text, HASHED_AT_ONCE):
            found = space + piece if has_begun else piece.lstrip(ASCII_SPACE)
            content = found.rstrip(ASCII_SPACE)
            space = found[len(content) :]  # perhaps the text's end; else it is hashed with what follows
            has_begun = has_begun or bool(content)
            if "\r" in content:
                content = content.replace("\r\n", "\n")
            is_empty = is_empty and (not content or content.isspace())
            try:
                digest.update(content.encode("utf-8"))
            except UnicodeEncodeError as error:
                detail = f"half of a surrogate pair near character {place + error.start + 1}"
                raise BadRecord("lone_surrogate", detail) from error
            place += len(piece)
        if is_empty:
            raise BadRecord("empty", "the text is empty")
        return digest.digest()
