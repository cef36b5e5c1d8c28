"""What a training run left in its TensorBoard log, in its checkpoints' folder: curves, arguments, last losses."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

# The engine writes every figure twice (over iterations, over samples) and a perplexity for each validation figure.
_FIGURES = re.compile(r"(.* )?(loss|fraction|accuracy|rewards?|margin)( validation( .*)?)?")
_DOUBLES = re.compile(r".*( vs samples| ppl)")
_EVENT_FILES = "events.out.tfevents.*"
_ARGUMENT = "/text_summary"


@dataclass(frozen=True)
class TrainingLog:
    """The log of a run."""

    curves: dict[str, list[tuple[int, float]]]
    """Name -> (iteration, value) in the order of iterations; where one was logged twice, the later value."""
    arguments: dict[str, str]
    """The engine's arguments and ours, as text, of the last start."""


def log_folder(candidates: Iterable[Path]) -> Path | None:
    """The first of these folders that holds a log."""
    return next((path for path in candidates if any(path.glob(_EVENT_FILES))), None)


def find_log_folders(folder: Path) -> list[Path]:
    """Every folder at or below ``folder`` that holds a log, in the order of their names."""
    return sorted({path.parent for path in files_below(folder, _EVENT_FILES)})


def files_below(folder: Path, pattern: str) -> list[Path]:
    """Files at or below ``folder`` with a name like ``pattern``, sorted, also in folders behind symbolic links.

    Each folder is visited once, under its own name rather than a link's; a link that leads back up ends there. What may
    not be read is left out.
    """
    found: list[Path] = []
    visited: set[Path] = set()
    folders: list[Path] = [folder]
    links: list[Path] = []
    while folders or links:
        inside = folders.pop() if folders else links.pop()
        if inside.resolve() in visited:
            continue
        visited.add(inside.resolve())
        try:
            entries = list(inside.iterdir())
        except PermissionError:
            continue
        folders += [path for path in entries if path.is_dir() and not path.is_symlink()]
        links += [path for path in entries if path.is_dir() and path.is_symlink()]
        found += [path for path in entries if fnmatch(path.name, pattern)]
    return sorted(found)


def read_log(folder: Path) -> TrainingLog:
    """Read all event files of a folder, with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # heavy

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 1})
    events.Reload()
    curves = {}
    for tag in sorted(events.Tags()["scalars"]):
        logged = sorted(events.Scalars(tag), key=lambda event: (event.step, event.wall_time))
        curves[tag] = list({event.step: (event.step, event.value) for event in logged}.values())
    names = [tag for tag in events.Tags()["tensors"] if tag.endswith(_ARGUMENT)]
    return TrainingLog(curves, {tag.removesuffix(_ARGUMENT): _text(events.Tensors(tag)[-1]) for tag in names})


def _text(event: Any) -> str:
    """The string that a text event holds."""
    return b"".join(event.tensor_proto.string_val).decode("utf-8", errors="replace")


def _is_figure(name: str) -> bool:
    """Whether a curve is a loss or logged with one, and not its duplicate over samples or as a perplexity."""
    return bool(_FIGURES.fullmatch(name)) and not _DOUBLES.fullmatch(name)


def logged_figures(load_dir: Path, iteration: int, tensorboard_dir: str | None) -> dict[str, float]:
    """The last value of each loss, and of the figures logged with it, at or before the checkpoint's iteration.

    Args:
        load_dir: the checkpoint folder; its ``tensorboard/`` is where training logs by default.
        iteration: the checkpoint's iteration.
        tensorboard_dir: another folder that the run may have logged to.

    Returns:
        Name, with the iteration it was logged at, to value. Empty where there is no log.
    """
    folder = log_folder([load_dir / "tensorboard", *(Path(path) for path in [tensorboard_dir] if path)])
    if folder is None:
        return {}
    figures = {}
    for name, curve in read_log(folder).curves.items():
        logged = [point for point in curve if point[0] <= iteration]
        if _is_figure(name) and logged:
            figures[f"{name} at iteration {logged[-1][0]:,}"] = float(f"{logged[-1][1]:.5g}")
    return figures
