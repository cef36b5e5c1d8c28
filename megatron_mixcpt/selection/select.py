"""Select samples for format alignment from a scores file, in two passes over it: pick, then write.

The output holds the chosen samples' records in the order of the scores file, as training reads them; the report says
what was chosen of how many and why the others were not.
"""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.whole_outputs import open_whole
from megatron_mixcpt.selection.histogram import Histogram, draw
from megatron_mixcpt.selection.settings import SelectSettings
from megatron_mixcpt.selection.strategies import STRATEGIES, ScoreLine, pick

NEEDED = {"id": str, "kind": str, "fas": float, "perplexity": float, "record": dict}
REASONS = {
    "not_selected": "other samples come first in the strategy's order",
    "duplicate": "the same sample is in an earlier line",
    "other_kind": "the sample is of the other kind",
}
"""Why a scored sample is left out, by the name that the report gives it."""


def select_alignment(settings: SelectSettings) -> dict[str, Any]:
    """Write the output, its ``.report.json`` and, where matplotlib is installed, its ``.png``; replaces old ones.

    Returns:
        The report.

    Raises:
        DataError: the scores file cannot be read or holds no sample of the kind, or an output cannot be written.
    """
    strategy = STRATEGIES[settings.strategy]
    everyone, chosen = Histogram(), Histogram()
    ids = pick(_counted(settings, everyone), strategy, settings.top_k, settings.seed)
    if not everyone.total:
        raise DataError(f"{settings.scores} holds no {settings.kind} samples; score some, or choose the other --kind")
    output, rejects = settings.output, settings.rejects
    with _output(output) as file, _output(rejects) if rejects else contextlib.nullcontext() as rejects_file:
        reasons = _write(settings, ids, chosen, file, rejects_file)
    report = {
        "scores": str(settings.scores),
        "kind": settings.kind,
        "strategy": settings.strategy,
        "top_k": settings.top_k,
        "seed": settings.seed if settings.strategy == "random" else None,
        "selected": chosen.total,
        "left_out": dict(reasons),
        "fas_of_all": everyone.described(),
        "fas_of_selected": chosen.described(),
    }
    with _output(Path(f"{output}.report.json")) as file:
        file.write(json.dumps(report, indent=2).encode() + b"\n")
    title = f"{settings.kind}: {settings.strategy}, {chosen.total:,} of {everyone.total:,} samples"
    picture = draw(everyone, chosen, title)
    if picture is not None:
        with _output(Path(f"{output}.png")) as file:
            file.write(picture)
    return report | {"picture": f"{output}.png" if picture else None}


def _counted(settings: SelectSettings, histogram: Histogram) -> Iterator[ScoreLine]:
    """The lines of the kind, counted as they pass."""
    for line in _read(settings.scores):
        if line["kind"] == settings.kind:
            histogram.add(line["fas"])
            yield line


def _write(
    settings: SelectSettings, ids: set[str], chosen: Histogram, file: BinaryIO, rejects_file: BinaryIO | None
) -> Counter[str]:
    """Write the chosen samples, and the others where asked for; returns how many were left out, by reason."""
    waiting, reasons = set(ids), Counter[str]()
    for line in _read(settings.scores):
        if line["kind"] != settings.kind:
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


def _read(path: Path) -> Iterator[ScoreLine]:
    """The lines of a scores file. Raises DataError naming the first bad line."""
    try:
        with open(path, "rb") as file:
            for number, text in enumerate(file, start=1):
                yield _line(path, number, text)
    except OSError as error:
        raise DataError(f"--scores {path}: cannot be read ({error.strerror}); check the path") from error


def _line(path: Path, number: int, text: bytes) -> ScoreLine:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not JSON ({error}); score the samples again") from error
    wrong = [
        name for name, kind in NEEDED.items() if not isinstance(line, dict) or not isinstance(line.get(name), kind)
    ]
    if wrong:
        raise DataError(f"{path}:{number}: no valid {wrong[0]}; give an output of tools/score_alignment.py")
    return line


@contextlib.contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when it is complete. Raises DataError where it cannot be written."""
    try:
        with open_whole(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); check the folder") from error
