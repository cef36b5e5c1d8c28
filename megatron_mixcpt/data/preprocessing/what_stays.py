"""Which of a kind's samples stay, once all of them are there: duplicates and limits on tokens."""

from pathlib import Path

import numpy as np

from megatron_mixcpt.data.preprocessing.near_duplicates import find_near_duplicates
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.record_maker import DROP_REASONS

REASONS = ("", *DROP_REASONS)
"""The names of the codes that :func:`select` gives; 0 stands for a sample that stays."""
BUCKET_SAMPLES = 1 << 20


def select(samples: list[np.ndarray], signature_paths: list[Path], settings: PreprocessSettings) -> list[np.ndarray]:
    """Which samples of a kind stay, whatever source they are of, before their number is limited.

    For each array of samples (``SAMPLE_TYPE``) a uint8 array: why a sample is dropped, as a place in ``REASONS``.
    """
    codes = [np.zeros(len(part), np.uint8) for part in samples]
    if not settings.keep_duplicates:
        _mark(codes, [~first for first in first_occurrences(samples)], "duplicate")
    _mark(
        codes, [part["length"] - settings.num_frame_tokens < settings.min_tokens for part in samples], "too_few_tokens"
    )
    if settings.near_duplicates is not None:
        kept = [code == 0 for code in codes]
        _mark(codes, find_near_duplicates(signature_paths, kept, settings.near_duplicates), "near_duplicate")
    return codes


def limit(samples: list[np.ndarray], codes: list[np.ndarray], max_tokens: int) -> None:
    """Drop the samples of a dataset from the first on with which there are more than ``max_tokens``: changes codes."""
    _mark(codes, _beyond(max_tokens, samples, codes), "over_max_tokens")


def _mark(codes: list[np.ndarray], flags: list[np.ndarray], reason: str) -> None:
    for code, flag in zip(codes, flags, strict=True):
        code[flag & (code == 0)] = REASONS.index(reason)


def _beyond(max_tokens: int, samples: list[np.ndarray], codes: list[np.ndarray]) -> list[np.ndarray]:
    """Flags the kept samples from the first on with which there are more than ``max_tokens``."""
    total, flags = 0, []
    for part, code in zip(samples, codes, strict=True):
        running = total + np.cumsum(np.where(code == 0, part["length"], 0), dtype=np.int64)
        total = int(running[-1]) if len(running) else total
        flags.append(running > max_tokens)
    return flags


def first_occurrences(samples: list[np.ndarray]) -> list[np.ndarray]:
    """Which samples are the first of their digest: one bool array for each array of ``SAMPLE_TYPE``.

    Works through the digests in ranges of about a million, so that memory does not grow with their number.
    """
    keep = [np.ones(len(part), bool) for part in samples]
    num_buckets = sum(map(len, samples)) // BUCKET_SAMPLES + 1
    for bucket in range(num_buckets):
        chosen = [np.flatnonzero(part["digest"][:, 0] % num_buckets == bucket) for part in samples]
        digests = np.concatenate([part["digest"][rows] for part, rows in zip(samples, chosen, strict=True)])
        order = np.lexsort((np.arange(len(digests)), digests[:, 1], digests[:, 0]))
        ordered = digests[order]
        repeated = np.zeros(len(digests), bool)
        repeated[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
        by_part = np.split(repeated, np.cumsum([len(rows) for rows in chosen])[:-1])
        for flags, rows, part_repeated in zip(keep, chosen, by_part, strict=True):
            flags[rows[part_repeated]] = False
    return keep
