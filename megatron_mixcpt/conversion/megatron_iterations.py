"""Which iterations of a checkpoint folder are complete: an interrupted save is found without reading its tensors.

The engine writes the files with the tensors first, then ``.metadata``, the index of what they hold (renamed into
place), then ``metadata.json``, and last the tracker file. So an iteration is complete when ``.metadata`` and
``metadata.json`` can be read and every file is at least as long as its index says. This also finds files that were
truncated later, by a power failure or an interrupted copy.
"""

import json
from pathlib import Path
from typing import NamedTuple

from megatron_mixcpt.conversion.inert_pickle import load_index
from megatron_mixcpt.conversion.megatron_layout import FORMAT_NAME, TRACKER_NAME
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.whole_outputs import write_whole

INDEX_NAME = ".metadata"
RELEASE = "release"


class Choice(NamedTuple):
    """A complete iteration to continue from."""

    folder: Path
    passed_over: str | None
    """Why it is not the one that the tracker file names, in one line; None where it is."""


def iteration_folder(load_dir: Path, iteration: int) -> Path:
    """The folder in which the engine keeps an iteration."""
    return load_dir / f"iter_{iteration:07d}"


def iteration_folders(load_dir: Path) -> list[Path]:
    """Folders of saved iterations, complete or not, the newest first."""
    folders = [path for path in load_dir.glob("iter_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(folders, key=iteration_number, reverse=True)


def iteration_number(folder: Path) -> int:
    """The number in ``iter_0000100``; 0 for a release, which was not trained."""
    return 0 if folder.name == RELEASE else int(folder.name.removeprefix("iter_"))


def why_incomplete(folder: Path) -> str | None:
    """What an iteration lacks, in a few words; None where it is complete. Reads its index and its files' sizes."""
    for name in (INDEX_NAME, FORMAT_NAME):
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            return f"it has no {name}"
    try:
        json.loads((folder / FORMAT_NAME).read_bytes())
    except ValueError as error:  # after a power failure there may be zeros in its place
        return f"its {FORMAT_NAME} cannot be read ({error})"
    try:
        parts = load_index((folder / INDEX_NAME).read_bytes()).storage_data.values()
    except Exception as error:  # an index is a pickle: anything can come out of a damaged one
        return f"its {INDEX_NAME} cannot be read ({error})"
    ends: dict[str, int] = {}
    for part in parts:
        ends[part.relative_path] = max(ends.get(part.relative_path, 0), part.offset + part.length)
    for name, end in ends.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size < end:
            return f"{name} has {size:,} of {end:,} bytes"
    return None


def choose_checkpoint(load_dir: Path) -> Choice | None:
    """The iteration that the tracker file names, or the last complete one before it where that is incomplete.

    Without a tracker file, or with an unreadable one, the newest complete iteration. None where there is no iteration.

    Raises CheckpointError where the named iteration is incomplete and no complete one precedes it.
    """
    named = tracked_iteration(load_dir)
    if named is None:
        newest = _newest_complete(load_dir, None)
        if newest is None:
            return None
        return Choice(newest, f"{load_dir / TRACKER_NAME} names no iteration; continuing from {newest.name}")
    reason = why_incomplete(named) if named.is_dir() else "it does not exist"
    if reason is None:
        return Choice(named, None)
    last = _newest_complete(load_dir, iteration_number(named))
    if last is None:
        raise CheckpointError(
            f"{named} is incomplete ({reason}), and {load_dir} has no complete iteration before it: "
            "choose another folder, or delete this one to start again"
        )
    return Choice(last, f"{named} is incomplete ({reason}); continuing from {last.name}, the last complete checkpoint")


def tracked_iteration(load_dir: Path) -> Path | None:
    """The folder that the tracker file names, whether it exists or not; None where no tracker file names one."""
    tracker = load_dir / TRACKER_NAME
    name = tracker.read_text(errors="replace").strip() if tracker.is_file() else ""
    if name == RELEASE:
        return load_dir / RELEASE
    return iteration_folder(load_dir, int(name)) if name.isdecimal() else None


def write_tracker(load_dir: Path, folder: Path) -> None:
    """Let the tracker file name ``folder``. Raises OSError, and then it names what it named before."""
    write_whole(load_dir / TRACKER_NAME, RELEASE if folder.name == RELEASE else str(iteration_number(folder)))


def _newest_complete(load_dir: Path, before: int | None) -> Path | None:
    folders = [path for path in iteration_folders(load_dir) if before is None or iteration_number(path) < before]
    return next((path for path in folders if why_incomplete(path) is None), None)
