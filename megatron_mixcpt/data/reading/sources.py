"""Paths on the command line become input files of a known format, in an order that depends on their names alone."""

import glob
import json
from pathlib import Path

from megatron_mixcpt.data.reading.formats.compression import COMPRESSIONS
from megatron_mixcpt.data.reading.formats.registry import FORMATS
from megatron_mixcpt.data.reading.input_format import InputFormat, Source
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.errors import DataError


def format_of(path: Path) -> tuple[InputFormat, str] | None:
    """(format, compression) that a file's name stands for, or None where it is not a data file."""
    name, compression = path.name, path.suffix.lower()
    if compression in COMPRESSIONS:
        name = path.stem
    else:
        compression = ""
    known = next((known for known in FORMATS if known.has_name(name)), None)
    if known is None or (compression and not known.is_compressible):
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
    if kind in KINDS and kind not in known[0].kinds:
        possible = " or ".join(f"--{kind}" for kind in known[0].kinds)
        raise DataError(f"--{kind} {path}: a .{known[0].name} file holds no such records; give it to {possible}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"--{kind} {path}: cannot be read ({error.strerror})") from error
    return Source(kind, path, *known, size)


def _known_names() -> str:
    plain = [suffix for known in FORMATS if known.is_compressible for suffix in known.suffixes]
    others = [suffix for known in FORMATS if not known.is_compressible for suffix in known.suffixes]
    compressions = f"these with {', '.join(COMPRESSIONS[:-1])} or {COMPRESSIONS[-1]}"
    return f"{', '.join([*plain, compressions, *others[:-1]])} or {others[-1]}"
