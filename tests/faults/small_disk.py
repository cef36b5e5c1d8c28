"""A disk of a given size for drills, and how they end where a promise is not kept; mounting needs root."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of ``size`` bytes at ``folder`` while the block runs."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        # Lazily: a process that outlives a failed drill may still write there.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, size: int) -> None:
    """Give ``disk`` this many bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def check(promise: bool, otherwise: str) -> None:
    """Exits with ``otherwise`` where the promise is not kept."""
    if not promise:
        sys.exit(otherwise)
