"""Samples that share a long run of words with a test set are found, so that no test is trained on.

Words are letters and digits in lower case; everything between them is passed over, so that neither layout nor
punctuation hides a match. Runs of 13 words are what GPT-3's authors used (arXiv 2005.14165, appendix C). A test item
shorter than that, but of eight words or more, counts as one run; still shorter ones are too common to tell anything.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from megatron_mixcpt.data.long_text import LongText, slices
from megatron_mixcpt.data.reading.readers import is_blank, parse, read_blocks
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.digests import file_digest

WORD = re.compile(r"[^\W_]+")
LEAST_WORDS = 8
# Long texts are looked at in slices that overlap by more than a run of words takes.
SLICE_CHARACTERS = 1 << 20
OVERLAP_CHARACTERS = 1 << 10


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as this module compares them."""
    return WORD.findall(text.lower())


class TestSets:
    """The runs of words of some test sets, filed under their rarest word so that most texts need no closer look."""

    __test__ = False  # not a test of pytest's

    def __init__(self, texts: Iterator[str], num_words: int):
        runs: set[tuple[str, ...]] = set()
        for text in texts:
            words = words_of(text)
            length = min(num_words, len(words))
            if length >= LEAST_WORDS:
                runs.update(tuple(words[start : start + length]) for start in range(len(words) - length + 1))
        frequency = Counter(word for run in runs for word in run)
        self._by_rarest: dict[str, list[tuple[int, tuple[str, ...]]]] = {}
        for run in sorted(runs):
            offset = min(range(len(run)), key=lambda place: (frequency[run[place]], -len(run[place]), place))
            self._by_rarest.setdefault(run[offset], []).append((offset, run))
        self.num_runs = len(runs)

    def shared_words(self, text: str | LongText) -> str | None:
        """The first run that ``text`` shares with the test sets, or None."""
        for piece in slices(text, SLICE_CHARACTERS, OVERLAP_CHARACTERS):
            if found := self._shared_words(words_of(piece)):
                return found
        return None

    def _shared_words(self, words: list[str]) -> str | None:
        if self._by_rarest.keys().isdisjoint(words):
            return None
        for place, word in enumerate(words):
            for offset, run in self._by_rarest.get(word, ()):
                start = place - offset
                if start >= 0 and tuple(words[start : start + len(run)]) == run:
                    return " ".join(run)
        return None


def read_test_sets(paths: list[str], num_words: int) -> TestSets:
    """Read test sets from data files: every string in every record, whatever its field. Raises DataError."""
    return TestSets(_texts(paths), num_words)


def test_sets_digest(paths: list[str]) -> str:
    """One sha256 of all test sets' contents, in hexadecimal; empty where there are none. Raises DataError."""
    digests = [file_digest(source.path) for source in find_sources("decontaminate", paths)]
    return hashlib.sha256("".join(digests).encode()).hexdigest() if digests else ""


def _texts(paths: list[str]) -> Iterator[str]:
    for source in find_sources("decontaminate", paths):
        for number, row in enumerate((row for rows in read_blocks(source, None) for row in rows), start=1):
            if is_blank(source, row):
                continue
            try:
                yield from _strings(parse(source, row))
            except BadRecord as error:
                raise DataError(f"--decontaminate {source.path}:{number}: {error.detail}; fix the line") from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
