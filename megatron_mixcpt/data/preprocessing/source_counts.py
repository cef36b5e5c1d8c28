"""What workers left of the parts, and what it says of each source: counts, and the lines of what gave no sample."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from megatron_mixcpt.data.mixture.manifest import SourceSummary
from megatron_mixcpt.data.preprocessing.parts.files import SAMPLE_TYPE, PartResult
from megatron_mixcpt.data.preprocessing.what_stays import REASONS
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part
from megatron_mixcpt.data.reading.record_maker import DROP_REASONS


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


class SourceCounts:
    """Adds up what became of each input file's records."""

    def __init__(self, sources: list[Source], digests: list[str]):
        self._digests = digests
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

    def summaries(self, dataset: str) -> tuple[SourceSummary, ...]:
        """One summary for each input file of ``dataset``."""
        return tuple(
            SourceSummary(
                path=str(source.path),
                size=source.size,
                sha256=self._digests[index],
                records=self.records[index],
                samples=self.samples[index],
                tokens=self.tokens[index],
                rejects=dict(sorted(self.rejects.get(index, Counter()).items())),
            )
            for index, source in enumerate(self._sources)
            if source.dataset == dataset
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
