"""Samples that are almost an earlier one: MinHash signatures by ``datasketch``, compared through hash bands on disk.

A text's words in runs of five are its set; two texts' similarity is the Jaccard index of their sets, estimated by the
share of equal numbers in their signatures. Only samples that agree in a whole band of their signatures are compared
(locality-sensitive hashing; ``datasketch`` chooses the bands for the threshold). Signatures stay in files, and a band
is sorted at a time, so that memory is some 30 bytes a sample rather than datasketch's own index of 10 kB a sample.
"""

from pathlib import Path

import numpy as np

from megatron_mixcpt.data.long_text import LongText, slices
from megatron_mixcpt.data.preprocessing.decontaminate import SLICE_CHARACTERS, words_of
from megatron_mixcpt.errors import ConfigError

NUM_PERMUTATIONS = 64
WORDS_IN_RUN = 5
SIGNATURE_TYPE = np.dtype(("<u4", (NUM_PERMUTATIONS,)))
COMPARE_AT_ONCE = 1 << 16


def check_available() -> None:
    """Raise ConfigError unless ``datasketch`` is installed."""
    try:
        import datasketch  # noqa: F401
    except ImportError as error:
        raise ConfigError("--near-duplicates needs datasketch; install it with: pip install datasketch") from error


def signature(text: str | LongText) -> np.ndarray:
    """The MinHash signature of a text: uint32 ``[NUM_PERMUTATIONS]``."""
    from datasketch import MinHash

    minhash = MinHash(NUM_PERMUTATIONS)
    for piece in slices(text, SLICE_CHARACTERS):
        words = words_of(piece) or [piece]
        num_runs = max(1, len(words) - WORDS_IN_RUN + 1)
        runs = {" ".join(words[start : start + WORDS_IN_RUN]) for start in range(num_runs)}
        minhash.update_batch([run.encode("utf-8") for run in sorted(runs)])
    return minhash.hashvalues.astype("<u4")


def find_near_duplicates(paths: list[Path], kept: list[np.ndarray], threshold: float) -> list[np.ndarray]:
    """Which samples are near-duplicates of an earlier kept one: a bool array for each file of signatures.

    ``kept`` says, for each file, which samples still count.
    """
    from datasketch import MinHashLSH

    signatures = _Signatures(paths, kept)
    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
    near = np.zeros(len(signatures), bool)
    for band in range(index.b):
        for earlier, later in _pairs(signatures.keys(slice(band * index.r, (band + 1) * index.r)), near):
            similar = (signatures[earlier] == signatures[later]).mean(axis=1)
            near[later[similar >= threshold]] = True
    return signatures.by_file(near)


def _pairs(keys: np.ndarray, near: np.ndarray):
    """(first of its key, another of that key), in arrays of bounded length; samples found already are passed over."""
    order = np.argsort(keys, kind="stable")
    is_first = np.ones(len(order), bool)
    is_first[1:] = keys[order[1:]] != keys[order[:-1]]
    firsts = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    wanted = np.flatnonzero(~is_first & ~near[order])
    for start in range(0, len(wanted), COMPARE_AT_ONCE):
        chosen = wanted[start : start + COMPARE_AT_ONCE]
        yield firsts[chosen], order[chosen]


class _Signatures:
    """The kept signatures of all files as one table that stays on disk."""

    def __init__(self, paths: list[Path], kept: list[np.ndarray]):
        self._files = [_open(path) for path in paths]
        self._kept = kept
        self._rows = [np.flatnonzero(flags).astype(np.int32) for flags in kept]
        self._starts = np.cumsum([0] + [len(rows) for rows in self._rows])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        table = np.empty((len(places), NUM_PERMUTATIONS), "<u4")
        owners = np.searchsorted(self._starts, places, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            table[mine] = self._files[owner][self._rows[owner][places[mine] - self._starts[owner]]]
        return table

    def keys(self, columns: slice) -> np.ndarray:
        """A 64-bit hash of some columns for every row."""
        keys = [np.zeros(len(rows), np.uint64) for rows in self._rows]
        for key, file, rows in zip(keys, self._files, self._rows, strict=True):
            for column in range(columns.start, columns.stop):
                key *= np.uint64(0x9E3779B97F4A7C15)
                key ^= file[rows, column].astype(np.uint64) + (key >> np.uint64(29))
        return np.concatenate([np.zeros(0, np.uint64), *keys])

    def by_file(self, flags: np.ndarray) -> list[np.ndarray]:
        """Flags of rows as one array per file, False for what is not kept."""
        result = [np.zeros(len(kept), bool) for kept in self._kept]
        for found, rows, start in zip(result, self._rows, self._starts, strict=False):
            found[rows] = flags[start : start + len(rows)]
        return result


def _open(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.zeros((0, NUM_PERMUTATIONS), "<u4")
    return np.memmap(path, "<u4", mode="r").reshape(-1, NUM_PERMUTATIONS)
