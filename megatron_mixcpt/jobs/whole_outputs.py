"""Outputs that are either complete or absent, however the process or the machine stops.

A file or folder is written beside its place, flushed to the disk and renamed; then the folder that holds the new name
is flushed too. After a power failure either the old content is there or the new one, never a part of it. Every writer
of the package goes through here; :mod:`~megatron_mixcpt.jobs.ranks` does the same for several processes.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: str | bytes) -> None:
    """Give ``path`` this content, text as UTF-8. Raises OSError, and then ``path`` is as it was."""
    with open_whole(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends; an error in the block removes it.

    Raises OSError where it cannot be written, and then ``path`` is as it was.
    """
    aside = aside_of(path)
    try:
        with open(aside, "wb") as file:
            yield file
        publish(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, renamed to ``path`` when the block ends; an error in the block removes it.

    Files in it need no care of their own: all are flushed once, at the end. Missing parents of ``path`` are made.

    Raises OSError where it cannot be written, or where ``path`` holds anything, and then ``path`` is as it was.
    """
    aside = make_aside(path)
    try:
        yield aside
        publish(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make_aside(path: Path) -> Path:
    """The empty folder :func:`aside_of` ``path``; what an earlier process left there is removed. Raises OSError."""
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    if not aside.parent.exists():
        make_folder(aside.parent)
    aside.mkdir()
    return aside


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, with their names on the disk; an existing one is left. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent)


def aside_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: beside it, hidden."""
    return path.with_name(f".{path.name}.partial")


def publish(aside: Path, path: Path) -> None:
    """Flush ``aside``, a file or a folder of files, to the disk and rename it to ``path``. Raises OSError.

    A file replaces an existing file; a folder replaces an empty folder only.
    """
    flush_all(aside)
    aside.replace(path)
    flush(path.parent)


def flush_all(path: Path) -> None:
    """:func:`flush` a file, or a folder with everything in it."""
    for inner in path.rglob("*") if path.is_dir() else ():
        flush(inner)
    flush(path)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
