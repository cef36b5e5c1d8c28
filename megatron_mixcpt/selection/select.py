"""Select samples for format alignment from a scores file, in two passes over it: pick, then write.

The output holds the chosen samples' records in the order of the scores file, as training reads them; the report says
what was chosen of how many and why the others were not.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.whole_outputs import open_whole
from megatron_mixcpt.selection.histogram import Histogram, draw
from megatron_mixcpt.selection.strategies import STRATEGIES, Line, pick

NEEDED = {"id": str, "kind": str, "fas": float, "perplexity": float, "record": dict}
REASONS = {
    "not_selected": "another sample comes before it in the strategy's order",
    "duplicate": "the same sample stands earlier in the file",
    "other_kind": "of the other kind",
}
"""Why a scored sample is left out, by the name that the report gives it."""


@dataclass(frozen=True)
class Selection:
    """What to select."""

    scores: Path
    kind: str
    strategy: str = "high"
    top_k: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"--top-k {self.top_k}: expected at least 1")


def select_alignment(selection: Selection, output: Path, rejects: Path | None = None) -> dict[str, Any]:
    """Write ``output``, ``<output>.report.json`` and, where matplotlib is installed, ``<output>.png``.

    Args:
        selection: from which scores, and how.
        output: JSONL of records, usable as ``--sft`` or ``--dpo``; replaced where it exists.
        rejects: JSONL with id, place, score and reason of every sample that was left out; None for none.

    Returns:
        The report.

    Raises:
        DataError: the scores file cannot be read, or holds no sample of the kind.
    """
    strategy = STRATEGIES[selection.strategy]
    everyone, chosen = Histogram(), Histogram()
    ids = pick(_counted(selection, everyone), strategy, selection.top_k, selection.seed)
    if not everyone.total:
        raise DataError(f"{selection.scores} holds no {selection.kind} sample; score some, or choose the other --kind")
    with _output(output) as file, _output(rejects) if rejects else contextlib.nullcontext() as rejects_file:
        reasons = _write(selection, ids, chosen, file, rejects_file)
    report = {
        "scores": str(selection.scores),
        "kind": selection.kind,
        "strategy": selection.strategy,
        "top_k": selection.top_k,
        "seed": selection.seed if selection.strategy == "random" else None,
        "selected": chosen.total,
        "left_out": dict(reasons),
        "fas_of_all": everyone.described(),
        "fas_of_selected": chosen.described(),
    }
    with _output(Path(f"{output}.report.json")) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
    title = f"{selection.kind}: {selection.strategy}, {chosen.total:,} of {everyone.total:,} samples"
    drawn = draw(everyone, chosen, title, Path(f"{output}.png"))
    return report | {"picture": f"{output}.png" if drawn else None}


def _counted(selection: Selection, histogram: Histogram) -> Iterator[Line]:
    """The lines of the kind, counted as they pass."""
    for line in _read(selection.scores):
        if line["kind"] == selection.kind:
            histogram.add(line["fas"])
            yield line


def _write(
    selection: Selection, ids: set[str], chosen: Histogram, file: BinaryIO, rejects_file: BinaryIO | None
) -> Counter[str]:
    """Write what is chosen, and of the rest what is asked for; returns how many were left out, by reason."""
    waiting, reasons = set(ids), Counter[str]()
    for line in _read(selection.scores):
        if line["kind"] != selection.kind:
            reason = "other_kind"
        elif line["id"] in waiting:
            waiting.remove(line["id"])
            chosen.add(line["fas"])
            file.write(orjson.dumps(line["record"]) + b"\n")
            continue
        else:
            reason = "duplicate" if line["id"] in ids else "not_selected"
        reasons[reason] += 1
        if rejects_file is not None:
            place = {name: line.get(name) for name in ("id", "kind", "source", "line", "fas", "perplexity")}
            rejects_file.write(orjson.dumps(place | {"reason": reason}) + b"\n")
    return reasons


def _read(path: Path) -> Iterator[Line]:
    """The lines of a scores file. Raises DataError naming the first that is none."""
    try:
        with open(path, "rb") as file:
            for number, text in enumerate(file, start=1):
                yield _line(path, number, text)
    except OSError as error:
        raise DataError(f"--scores {path}: cannot be read ({error.strerror}); check the path") from error


def _line(path: Path, number: int, text: bytes) -> Line:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON ({error}); score the samples again") from error
    wrong = [
        name for name, kind in NEEDED.items() if not isinstance(line, dict) or not isinstance(line.get(name), kind)
    ]
    if wrong:
        raise DataError(f"{path}:{number}: no {wrong[0]}; give a file of tools/score_alignment.py")
    return line


@contextlib.contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when it is complete. Raises DataError where it cannot be written."""
    try:
        with open_whole(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
