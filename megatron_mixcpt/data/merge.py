"""Finished parts become one dataset: samples are selected, tokens joined, the index written, all of it read back."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from megatron_mixcpt.data.indexed import token_type_for, write_index
from megatron_mixcpt.data.manifest import KindSummary, SourceSummary, file_digest
from megatron_mixcpt.data.part_worker import SAMPLE_TYPE, PartResult
from megatron_mixcpt.data.parts import Part
from megatron_mixcpt.data.samples import DROP_REASONS
from megatron_mixcpt.data.selection import REASONS, select
from megatron_mixcpt.data.settings import PreprocessSettings
from megatron_mixcpt.data.sources import Source
from megatron_mixcpt.errors import DataError

COPY_BYTES = 1 << 20
CHECK_SAMPLES = 1 << 20
CHECK_TOKENS = 1 << 20


@dataclass(frozen=True)
class FinishedPart:
    """A part and what its worker left."""

    part: Part
    result: PartResult
    samples: np.ndarray
    """``SAMPLE_TYPE``, one per sample; a read-only memory map."""
    base: Path
    """Its files' path, without suffix."""


def open_part(part: Part, folder: Path) -> FinishedPart:
    """Open the files of a finished part."""
    base = folder / part.name
    path = Path(f"{base}.samples")
    samples = np.memmap(path, SAMPLE_TYPE, mode="r") if path.stat().st_size else np.zeros(0, SAMPLE_TYPE)
    return FinishedPart(part, PartResult.read(Path(f"{base}.json")), samples, base)


def merge_kind(
    kind: str,
    parts: list[FinishedPart],
    sources: list[Source],
    settings: PreprocessSettings,
    folder: Path,
    rejects: TextIO,
) -> KindSummary:
    """Write ``<kind>.bin`` and ``<kind>.idx`` into ``folder`` and append to the rejects.

    Raises DataError where the written files, read back, are not what the parts promise.
    """
    signatures = [Path(f"{part.base}.minhash") for part in parts]
    codes = select(kind, [part.samples for part in parts], signatures, settings)
    keep = [code == 0 for code in codes]
    token_type = token_type_for(settings.tokenizer.vocab_size)
    with open(folder / f"{kind}.bin", "wb") as file:
        for part, kept in zip(parts, keep, strict=True):
            _copy_tokens(part, kept, token_type.itemsize, file)
    lengths = np.concatenate([part.samples["length"][kept] for part, kept in zip(parts, keep, strict=True)])
    write_index(folder / f"{kind}.idx", lengths, token_type)
    counts = _SourceCounts(sources)
    for part, code in zip(parts, codes, strict=True):
        counts.add(part, code, rejects)
    digest = _check_written(folder / f"{kind}.bin", lengths, settings)
    return KindSummary(
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.int64)),
        records=sum(counts.records.values()),
        rejects=dict(sorted(sum(counts.rejects.values(), Counter()).items())),
        special_strings=sum(part.result.special_strings for part in parts),
        sources=counts.summaries(kind),
        bin_sha256=digest,
        idx_sha256=file_digest(folder / f"{kind}.idx"),
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


class _SourceCounts:
    """Adds up what became of each source's records."""

    def __init__(self, sources: list[Source]):
        self._sources = sources
        self.records: Counter[int] = Counter()
        self.samples: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self.rejects: dict[int, Counter[str]] = {}
        self._lines: Counter[int] = Counter()

    def add(self, part: FinishedPart, codes: np.ndarray, rejects: TextIO) -> None:
        """Count a part, the parts of a source in order, and write its rejects with the file's own line numbers.

        ``codes`` says which samples are dropped and why, as :func:`select` does.
        """
        kept = codes == 0
        bad = _group_by_segment(f"{part.base}.rejects")
        first = 0
        for index, (segment, counts) in enumerate(zip(part.part.segments, part.result.segments, strict=True)):
            rows = slice(first, first + counts.samples)
            first += counts.samples
            dropped = part.samples["line"][rows][~kept[rows]].tolist(), codes[rows][~kept[rows]].tolist()
            lost = bad.get(index, []) + [_dropped(line, REASONS[code]) for line, code in zip(*dropped, strict=True)]
            self._write_rejects(segment.source, lost, rejects)
            self.records[segment.source] += counts.records
            self.samples[segment.source] += int(kept[rows].sum())
            self.tokens[segment.source] += int(part.samples["length"][rows][kept[rows]].sum(dtype=np.int64))
            self._lines[segment.source] += counts.lines

    def _write_rejects(self, source: int, lost: list[dict[str, Any]], rejects: TextIO) -> None:
        reasons = self.rejects.setdefault(source, Counter())
        for record in sorted(lost, key=lambda record: record["line"]):
            reasons[record["reason"]] += 1
            line = {"source": str(self._sources[source].path), "line": record["line"] + self._lines[source]}
            rejects.write(json.dumps(line | {"reason": record["reason"], "detail": record["detail"]}) + "\n")

    def summaries(self, kind: str) -> tuple[SourceSummary, ...]:
        """One summary per source of ``kind``."""
        return tuple(
            SourceSummary(
                path=str(source.path),
                size=source.size,
                sha256=file_digest(source.path),
                records=self.records[index],
                samples=self.samples[index],
                tokens=self.tokens[index],
                rejects=dict(sorted(self.rejects.get(index, Counter()).items())),
            )
            for index, source in enumerate(self._sources)
            if source.kind == kind
        )


def _group_by_segment(path: str) -> dict[int, list[dict[str, Any]]]:
    groups: dict[int, list[dict[str, Any]]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            groups.setdefault(record["segment"], []).append(record)
    return groups


def _dropped(line: int, reason: str) -> dict[str, Any]:
    return {"line": line, "reason": reason, "detail": DROP_REASONS[reason]}


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
            num_inner_ends += np.count_nonzero(is_end) - len(ends)
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
