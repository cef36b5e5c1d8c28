"""A disk that forgets: what a power failure may leave of the changes that processes made to a folder.

Two models of what is on the disk after the power went:

- ``loose``: what POSIX promises and no more. What was written to a file is there once that file was flushed; a name
  (created, renamed, removed) once its folder was. Of everything else any part is there, in any order: a later name
  without an earlier one, a file under its name without content or with zeros in its place, one page of a write and not
  the next. A rename happens or does not: it is one transaction, though it be between two folders.
- ``ordered``: a journal as that of ext4 with ``data=ordered``. Names reach the disk in the order in which they were
  changed, and any flush takes all earlier ones along; content as in ``loose``, so that a file renamed without being
  flushed may be empty.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = 0
MODELS = ("loose", "ordered")
_PAGE_BYTES = 4096


class Data(NamedTuple):
    """Bytes written into a file, or its new size where there are none."""

    file: int
    offset: int
    content: bytes | None


class Names(NamedTuple):
    """Names that are changed together: (folder, name, what it is the name of from now on; None: nothing)."""

    names: tuple[tuple[int, str, int | None], ...]


class Flush(NamedTuple):
    """``fsync`` or ``fdatasync`` of a file or a folder."""

    node: int


Change = Data | Names | Flush


@dataclass
class Disk:
    """Files and folders by number; what has no name is there too, but nobody sees it."""

    files: dict[int, bytearray] = field(default_factory=dict)
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})

    def apply(self, change: Change) -> None:
        """Make a change."""
        if isinstance(change, Names):
            for folder, name, node in change.names:
                names = self.folders.setdefault(folder, {})
                names.pop(name, None)
                if node is not None:
                    names[name] = node
        elif isinstance(change, Data):
            self._write(self.files.setdefault(change.file, bytearray()), change)

    def _write(self, content: bytearray, change: Data) -> None:
        end = change.offset + len(change.content or b"")
        content.extend(bytes(max(0, end - len(content))))
        if change.content is None:
            del content[end:]
        else:
            content[change.offset : end] = change.content

    def find(self, path: Sequence[str]) -> int | None:
        """What is at a path below the root; None where there is nothing."""
        node: int | None = ROOT
        for name in path:
            node = self.folders.get(node, {}).get(name) if node is not None else None
        return node

    def tree(self) -> dict[str, bytes | None]:
        """Path -> content, None for a folder, of all that has a name."""
        found: dict[str, bytes | None] = {}
        left = [("", ROOT)]
        while left:
            prefix, folder = left.pop()
            for name, node in self.folders[folder].items():
                found[prefix + name] = bytes(self.files[node]) if node in self.files else None
                if node not in self.files:
                    left.append((f"{prefix}{name}/", node))
        return found


@dataclass
class Recording:
    """What happened in a folder: what it held before, and every change since."""

    before: Disk
    changes: list[Change]
    is_folder: dict[int, bool]

    def replayed(self, changes: Sequence[Change]) -> Disk:
        """The disk after ``changes`` alone; all files and folders exist, with or without names."""
        disk = Disk({node: bytearray(data) for node, data in self.before.files.items()})
        disk.folders = {node: dict(names) for node, names in self.before.folders.items()}
        for node, is_folder in self.is_folder.items():
            (disk.folders.setdefault(node, {}) if is_folder else disk.files.setdefault(node, bytearray()))
        for change in changes:
            disk.apply(change)
        return disk

    def cut(self, after: int, model: str, rng: random.Random, shares: Sequence[float] = (0.0, 0.5, 1.0)) -> Disk:
        """What is there when the power fails after the first ``after`` changes, one of the possible outcomes.

        Of what was on its way to the disk, nothing, any part or all survives: one of ``shares``, drawn for content and
        for names.
        """
        happened = self.changes[:after]
        safe = _flushed(happened, model)
        data_share, names_share = rng.choice(shares), rng.choice(shares)
        names_end = rng.randint(0, after) if names_share == 0.5 else after * names_share
        survived: list[Change] = []
        for place, change in enumerate(happened):
            if place in safe:
                survived.append(change)
            elif isinstance(change, Names):
                kept = place < names_end if model == "ordered" else rng.random() < names_share
                survived += [change] if kept else []
            elif isinstance(change, Data):
                survived += _part_of(change, data_share, rng)
        return self.replayed(survived)


def _flushed(happened: Sequence[Change], model: str) -> set[int]:
    """Places of the changes that flushes have brought to the disk."""
    safe: set[int] = set()
    waiting: list[int] = []
    for place, change in enumerate(happened):
        if isinstance(change, Flush):
            done = {earlier for earlier in waiting if _is_flushed(happened[earlier], change.node, model)}
            safe |= done
            waiting = [earlier for earlier in waiting if earlier not in done]
        else:
            waiting.append(place)
    return safe


def _is_flushed(change: Change, node: int, model: str) -> bool:
    if isinstance(change, Names):
        return model == "ordered" or any(folder == node for folder, _, _ in change.names)
    return isinstance(change, Data) and change.file == node


def _part_of(change: Data, share: float, rng: random.Random) -> list[Data]:
    """The pages of a write that are on the disk; sometimes the file has its new size without them."""
    if change.content is None:
        return [change] if rng.random() < share else []
    end = change.offset + len(change.content)
    starts = [change.offset, *range((change.offset // _PAGE_BYTES + 1) * _PAGE_BYTES, end, _PAGE_BYTES)]
    pages = zip(starts, [*starts[1:], end], strict=True)
    kept = [
        Data(change.file, start, change.content[start - change.offset : stop - change.offset])
        for start, stop in pages
        if rng.random() < share
    ]
    grown = [Data(change.file, end - 1, b"\0")] if share and rng.random() < 0.5 and end > change.offset else []
    return [*grown, *kept]


def write_tree(disk: Disk, folder: Path) -> None:
    """Write all that has a name into ``folder``, which is empty."""
    for path, content in sorted(disk.tree().items()):
        if content is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(content)


def read_tree(folder: Path) -> dict[str, bytes | None]:
    """What :meth:`Disk.tree` gives, of a folder."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else None for name, path in paths.items()}
