"""Outputs that are there complete or not at all, whatever ends the process or the machine.

A file is written beside its place, flushed to the disk and renamed; then the folder that holds the new name is flushed
too. After a power failure the old content is there or the new one, never a part. Every writer of the package goes
through here.
"""

import contextlib
import os
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


def aside_of(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: beside it, hidden."""
    return path.with_name(f".{path.name}.partial")


def publish(aside: Path, path: Path) -> None:
    """Flush ``aside``, a file or a folder of files, to the disk and rename it to ``path``. Raises OSError.

    A file replaces a file that is there; a folder replaces an empty folder alone.
    """
    for file in aside.rglob("*") if aside.is_dir() else (aside,):
        flush(file)
    if aside.is_dir():
        flush(aside)
    aside.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file's content or a folder's names are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
