"""Which scored samples a strategy picks (paper section 2.3 and Fig. 4), in memory that grows with K alone.

Every strategy is one or two rankings: a key per sample, the K smallest of which are kept in a heap while the samples
stream by. Samples of equal key are ranked by their id, so that the order of the file does not matter; a sample that
was seen before (the same id) is not picked twice. The second of two rankings breaks ties the other way round: it is the
other end of one order, so that both meet only where there are fewer than K samples.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

ScoreLine = dict[str, Any]
"""A line of the scores file."""
Key = Callable[[ScoreLine, int], float]
"""Gives a number for a line and the seed; the samples with the smallest numbers are picked."""


@dataclass(frozen=True)
class Strategy:
    """A way to pick K samples."""

    keys: tuple[Key, ...]
    """Rankings that share K; the first takes one more where K is odd."""


def _drawn(line: ScoreLine, seed: int) -> float:
    """A number in [0, 1), 53 bits, that depends on the sample and the seed only."""
    digest = hashlib.sha256(f"{seed} {line['id']}".encode()).digest()
    return int.from_bytes(digest[:7], "little") % 2**53 / 2**53


def _high(line: ScoreLine, seed: int) -> float:
    return -line["fas"]


def _low(line: ScoreLine, seed: int) -> float:
    return line["fas"]


def _perplexity(line: ScoreLine, seed: int) -> float:
    return line["perplexity"]


STRATEGIES = {
    "high": Strategy((_high,)),
    "low": Strategy((_low,)),
    "half": Strategy((_high, _low)),
    "random": Strategy((_drawn,)),
    "low-perplexity": Strategy((_perplexity,)),
}
"""The choices of ``--strategy``; its help says what each picks."""


class Ranking:
    """The ids of the K samples with the smallest keys so far, ties broken by id, the smallest or largest."""

    def __init__(self, key: Key, num_wanted: int, seed: int, largest_id: bool = False):
        self._key = key
        self._tie: type = str if largest_id else _Reversed
        self._num_wanted = num_wanted
        self._seed = seed
        self._heap: list[tuple[float, Any]] = []
        self.ids: set[str] = set()

    def add(self, line: ScoreLine) -> None:
        """Consider a sample."""
        identity = line["id"]
        if self._num_wanted == 0 or identity in self.ids:
            return
        item = (-self._key(line, self._seed), self._tie(identity))
        if len(self._heap) < self._num_wanted:
            heapq.heappush(self._heap, item)
            self.ids.add(identity)
            return
        dropped = heapq.heappushpop(self._heap, item)
        if dropped is not item:
            self.ids.add(identity)
            self.ids.remove(str(dropped[1]))


class _Reversed:
    """Text that sorts in reverse, since the heap drops its smallest item first."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text

    def __lt__(self, other: "_Reversed") -> bool:
        return other.text < self.text

    def __str__(self) -> str:
        return self.text


def pick(lines: Iterable[ScoreLine], strategy: Strategy, num_wanted: int, seed: int) -> set[str]:
    """The ids of the samples picked: ``num_wanted``, or all where there are fewer. One pass over ``lines``."""
    num_rankings = len(strategy.keys)
    shares = [num_wanted // num_rankings + (place < num_wanted % num_rankings) for place in range(num_rankings)]
    rankings = [
        Ranking(key, share, seed, largest_id=place > 0)
        for place, (key, share) in enumerate(zip(strategy.keys, shares, strict=True))
    ]
    for line in lines:
        for ranking in rankings:
            ranking.add(line)
    return set().union(*(ranking.ids for ranking in rankings))
