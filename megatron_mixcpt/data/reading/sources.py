"""Paths on the command line become input files of a known format, in an order that depends on their names alone."""

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.errors import DataError

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".bz2", ".zst")
WIKIEXTRACTOR_NAME = re.compile(r"wiki_\d+")
COMPRESSIBLE = ("jsonl", "txt")


@dataclass(frozen=True)
class Source:
    """One input file."""

    kind: str
    path: Path
    format: str
    """``jsonl``, ``txt``, ``parquet`` or ``arrow``."""
    compression: str
    """``.gz``, ``.bz2``, ``.zst`` or nothing."""
    size: int
    """In bytes, as it lies on disk."""

    def stamp(self) -> list[Any]:
        """What tells the file, as it is now, from another: kind, path, size in bytes and time of change."""
        return [self.kind, str(self.path), self.size, self.path.stat().st_mtime_ns]


def format_of(path: Path) -> tuple[str, str] | None:
    """(format, compression) that a file's name stands for, or None where it is not a data file."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    known = FORMATS.get(suffixes[-1]) if suffixes else None
    if WIKIEXTRACTOR_NAME.fullmatch(path.name.partition(".")[0]) and not suffixes:
        known = "jsonl"
    if known is None or (compression and known not in COMPRESSIBLE):
        return None
    return known, compression


def find_sources(kind: str, paths: list[str]) -> list[Source]:
    """The files that ``paths`` (files, folders, globs) stand for.

    A folder gives every data file below it, sorted by path; names that begin with a dot or an underscore are passed
    over. Raises DataError for a path that is not there, is no data file, holds none, or is given twice.
    """
    found: dict[Path, Source] = {}
    for given in paths:
        for path in _expand(kind, given):
            source = _source(kind, path)
            if source.path.resolve() in found:
                raise DataError(f"--{kind} {given}: {path} is given twice; name it once")
            found[source.path.resolve()] = source
    return list(found.values())


def _expand(kind: str, given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        files = _files_below(path)
        if not files:
            raise DataError(f"--{kind} {given}: the folder holds no data file ({_known_names()})")
        return files
    if path.exists():
        return [path]
    matches = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    if not matches:
        raise DataError(f"--{kind} {given}: no such file or folder; check the path")
    return [path for match in matches for path in _expand(kind, match)]


def _files_below(folder: Path) -> list[Path]:
    if (folder / "state.json").is_file():  # saved by the `datasets` library, which says there which files in what order
        try:
            names = [item["filename"] for item in json.loads((folder / "state.json").read_bytes())["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / 'state.json'}: not as the datasets library writes it ({error})") from error
        return [folder / name for name in names]
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_dir():
            files += _files_below(entry)
        elif format_of(entry):
            files.append(entry)
    return files


def _source(kind: str, path: Path) -> Source:
    known = format_of(path)
    if known is None:
        raise DataError(f"--{kind} {path}: not a data file by its name; expected {_known_names()}")
    if known[0] == "txt" and kind in ("sft", "dpo"):
        raise DataError(f"--{kind} {path}: plain text holds documents only; give it to --cpt")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"--{kind} {path}: cannot be read ({error.strerror})") from error
    return Source(kind, path, *known, size)


def _known_names() -> str:
    return ".jsonl, .json, .txt, these with .gz, .bz2 or .zst, .parquet or .arrow"
