"""Finished parts become datasets: samples are selected, tokens joined, the index written, all of it read back."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from megatron_mixcpt.data.mixture.indexed import token_type_for, write_index
from megatron_mixcpt.data.mixture.manifest import DatasetSummary
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.preprocessing.source_counts import FinishedPart, SourceCounts
from megatron_mixcpt.data.preprocessing.what_stays import limit, select
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.digests import file_digest

COPY_BYTES = 1 << 20
CHECK_SAMPLES = 1 << 20
CHECK_TOKENS = 1 << 20


def what_stays(parts: list[FinishedPart], settings: PreprocessSettings) -> list[np.ndarray]:
    """Which samples of all datasets of a kind stay: for each part the codes of :func:`select`."""
    samples = [part.samples for part in parts]
    codes = select(samples, [Path(f"{part.base}.minhash") for part in parts], settings)
    for dataset in dict.fromkeys(part.part.dataset for part in parts):
        if (max_tokens := settings.datasets[dataset].max_tokens) is not None:
            places = [place for place, part in enumerate(parts) if part.part.dataset == dataset]
            limit([samples[place] for place in places], [codes[place] for place in places], max_tokens)
    return codes


def merge_dataset(
    name: str,
    chosen: list[tuple[FinishedPart, np.ndarray]],
    counts: SourceCounts,
    settings: PreprocessSettings,
    folder: Path,
    rejects: TextIO,
) -> DatasetSummary:
    """Write ``<name>.bin`` and ``<name>.idx`` into ``folder`` and append to the rejects.

    ``chosen`` are the dataset's parts with their codes, as :func:`what_stays` gives them. Raises DataError where the
    written files, read back, are not what the parts promise.
    """
    parts, codes = [part for part, _ in chosen], [code for _, code in chosen]
    keep = [code == 0 for code in codes]
    token_type = token_type_for(settings.tokenizer.vocab_size)
    with open(folder / f"{name}.bin", "wb") as file:
        for part, kept in zip(parts, keep, strict=True):
            _copy_tokens(part, kept, token_type.itemsize, file)
    lengths = np.concatenate([part.samples["length"][kept] for part, kept in zip(parts, keep, strict=True)])
    write_index(folder / f"{name}.idx", lengths, token_type)
    for part, code in zip(parts, codes, strict=True):
        counts.add(part, code, rejects)
    digest = _check_written(folder / f"{name}.bin", lengths, settings)
    return DatasetSummary(
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        records=sum(counts.records.values()),
        rejects=dict(sorted(sum(counts.rejects.values(), Counter()).items())),
        special_strings=sum(part.result.special_strings for part in parts),
        sources=counts.summaries(name),
        bin_sha256=digest,
        idx_sha256=file_digest(folder / f"{name}.idx"),
        notes=dict(sorted(sum((Counter(part.result.notes) for part in parts), Counter()).items())),
    )


def _copy_tokens(part: FinishedPart, kept: np.ndarray, token_bytes: int, output: BinaryIO) -> None:
    """Append the kept samples' tokens to ``output``, run by run."""
    ends = np.cumsum(part.samples["length"], dtype=np.int64) * token_bytes
    changes = np.flatnonzero(np.diff(np.concatenate(([False], kept, [False]))))
    with open(f"{part.base}.bin", "rb") as file:
        for first, last in changes.reshape(-1, 2).tolist():
            start = int(ends[first - 1]) if first else 0
            file.seek(start)
            left = int(ends[last - 1]) - start
            while left > 0 and (block := file.read(min(left, COPY_BYTES))):
                output.write(block)
                left -= len(block)


def _check_written(path: Path, lengths: np.ndarray, settings: PreprocessSettings) -> str:
    """Read a .bin back: its size, its tokens' range, an end of sequence after each sample only. Returns its sha256."""
    tokenizer = settings.tokenizer
    token_type = token_type_for(tokenizer.vocab_size)
    digest = hashlib.sha256()
    num_inner_ends = 0
    with open(path, "rb") as file:
        for num_tokens, ends in _token_blocks(lengths):
            tokens = np.fromfile(file, token_type, num_tokens)
            digest.update(tokens)
            if len(tokens) != num_tokens or tokens.max() >= tokenizer.vocab_size:
                raise DataError(f"{path}: what was written reads back differently; check the disk, then run again")
            is_end = tokens == tokenizer.eos_id
            if not is_end[ends].all():
                raise DataError(f"{path}: what was written reads back differently; check the disk, then run again")
            num_inner_ends += int(np.count_nonzero(is_end)) - len(ends)
        if file.read(1):
            raise DataError(f"{path}: more was written than promised; check the disk, then run again")
    if num_inner_ends and not settings.allow_special_tokens:
        raise DataError(
            f"--tokenizer {tokenizer.folder}: ordinary text encodes to its end of sequence, {tokenizer.eos_token!r}; "
            "name another with --eos-token, or allow it with --allow-special-tokens"
        )
    return digest.hexdigest()


def _token_blocks(lengths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of at most ``CHECK_TOKENS`` tokens: how many they are, and which of them are the last of a sample."""
    for start in range(0, len(lengths), CHECK_SAMPLES):
        last = np.cumsum(lengths[start : start + CHECK_SAMPLES], dtype=np.int64) - 1
        for first in range(0, int(last[-1]) + 1, CHECK_TOKENS):
            inside = slice(*np.searchsorted(last, (first, first + CHECK_TOKENS)))
            yield min(CHECK_TOKENS, int(last[-1]) + 1 - first), last[inside] - first
