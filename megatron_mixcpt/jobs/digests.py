"""Digests of files, which tell their contents apart."""

import hashlib
from pathlib import Path


def file_digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal, as ``sha256sum`` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
