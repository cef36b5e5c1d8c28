"""Paths on the command line become input files of a known format, in an order that depends on their names alone."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.data.reading.formats.compression import COMPRESSIONS
from megatron_mixcpt.data.reading.formats.registry import FORMATS
from megatron_mixcpt.data.reading.held_out_names import is_bookkeeping, is_held_out
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


@dataclass(frozen=True)
class FoundFiles:
    """What paths stand for."""

    sources: list[Source]
    held_out: list[Path]
    """Data files of folders and globs that are left out, for their names say that they are for testing."""

    def describe_held_out(self, flag: str) -> str:
        """One line for the user about what is left out; empty where nothing is."""
        if not self.held_out:
            return ""
        named = ", ".join(map(str, self.held_out[:5])) + (", ..." if len(self.held_out) > 5 else "")
        return (
            f"{flag}: {len(self.held_out)} file(s) left out, held out by their names: {named}; name a file itself, or "
            "give --include-held-out-splits, to read them"
        )


def find_files(kind: str, paths: Sequence[str], include_held_out: bool | None = None) -> FoundFiles:
    """The files that ``paths`` (files, folders, globs) stand for.

    A folder gives every data file below it, sorted by path; names that begin with a dot or an underscore, and files
    that describe data (``dataset_infos.json``), are passed over. Of a folder or a glob, files whose names say that they
    are for testing are left out unless ``include_held_out`` or the glob itself says otherwise; a file that is named is
    always read. Without ``include_held_out`` they are left out of what is trained on, and read for other purposes.

    Args:
        kind: of the records, or the name of another flag that takes data files (``perplexity``).
        paths: as given on the command line.
        include_held_out: as above.

    Raises:
        DataError: a path is not there, is no data file, holds none, or is given twice.
    """
    include_held_out = kind not in KINDS if include_held_out is None else include_held_out
    found: dict[Path, Source] = {}
    held_out: list[Path] = []
    for given in paths:
        files, left_out = _chosen(kind, given, include_held_out)
        held_out += left_out
        for path in files:
            source = _source(kind, path)
            if source.path.resolve() in found:
                raise DataError(f"--{kind} {given}: {path} is given twice; name it once")
            found[source.path.resolve()] = source
    return FoundFiles(list(found.values()), [path for path in held_out if path.resolve() not in found])


def find_sources(kind: str, paths: Sequence[str]) -> list[Source]:
    """The files that are read, see :func:`find_files`, for those who have no one to tell what is left out."""
    return find_files(kind, paths).sources


def _chosen(kind: str, given: str, include_held_out: bool) -> tuple[list[Path], list[Path]]:
    """The files that one path stands for: those to read, and those that are left out."""
    files = _expand(kind, given)
    pattern = [part for part in Path(given).parts if glob.has_magic(part)] if not Path(given).exists() else []
    if include_held_out or is_held_out(pattern):
        return [path for path, _ in files], []
    kept = [path for path, below in files if not is_held_out(below)]
    left_out = [path for path, below in files if is_held_out(below)]
    if not kept:
        raise DataError(
            f"--{kind} {given}: by their names, all its files are held out ({left_out[0]}); name the files to read, or "
            "give --include-held-out-splits"
        )
    return kept, left_out


def _expand(kind: str, given: str) -> list[tuple[Path, tuple[str, ...]]]:
    """The files that a path stands for, each with those parts of its path that were not given."""
    path = Path(given)
    if path.is_dir():
        files = _files_below(path)
        if not files:
            raise DataError(f"--{kind} {given}: the folder holds no data file ({_known_names()})")
        return [(file, file.relative_to(path).parts) for file in files]
    if path.exists():
        return [(path, ())]
    matches = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else []
    matches = [match for match in matches if not is_bookkeeping(Path(match).name)]
    if not matches:
        raise DataError(f"--{kind} {given}: no such file or folder; check the path")
    num_plain = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
    found = [file for match in matches for file, _ in _expand(kind, match)]
    return [(file, file.parts[num_plain:]) for file in found]


def _files_below(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():  # of the `datasets` library: a folder for each split
        return [
            file for name in _listed(folder / "dataset_dict.json", "splits") for file in _files_below(folder / name)
        ]
    if (folder / "state.json").is_file():  # of the same library, which says there which files in what order
        return [folder / name for name in _listed(folder / "state.json", "_data_files", "filename")]
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "_")) or is_bookkeeping(entry.name):
            continue
        if entry.is_dir():
            files += _files_below(entry)
        elif format_of(entry):
            files.append(entry)
    return files


def _listed(path: Path, field: str, name: str | None = None) -> list[str]:
    """The names listed in a file of the datasets library. Raises DataError."""
    try:
        listed = [item[name] if name else item for item in json.loads(path.read_bytes())[field]]
        if not all(isinstance(item, str) for item in listed):
            raise TypeError(f"{field} are no names")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not as the datasets library writes it ({error})") from error
    return listed


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
