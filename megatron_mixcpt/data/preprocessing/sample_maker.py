"""A record becomes the text of a sample, or the reason why it does not.

What a row passes, in this order: the preset's conversion and the filter, the record's shape and the chat templates (all
of it in ``reading/``); the unified format, the drawn fraction, the test sets (here). Duplicates and limits on tokens
come when all samples are there.
"""

import hashlib
from dataclasses import dataclass

from megatron_mixcpt.data.long_text import LongText, slices
from megatron_mixcpt.data.preprocessing.decontaminate import TestSets
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.preprocessing.unify import unified_text
from megatron_mixcpt.data.reading.record_maker import Dropped
from megatron_mixcpt.data.records import BadRecord, Record

ASCII_SPACE = " \t\n\r\x0b\x0c"
HASHED_AT_ONCE = 1 << 20  # characters


@dataclass(frozen=True, slots=True)
class Sample:
    """The text of a sample, and 128 bits that are the same for texts taken as equal."""

    text: str | LongText
    digest: bytes


class SampleMaker:
    """Makes samples of one dataset."""

    def __init__(self, dataset: str, settings: PreprocessSettings, test_sets: TestSets | None):
        self._below = round(settings.datasets[dataset].fraction * 2**64)
        self._test_sets = test_sets

    def make(self, record: Record) -> Sample:
        """The sample of a record. Raises BadRecord where its text cannot be used, Dropped where it is not wanted."""
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
