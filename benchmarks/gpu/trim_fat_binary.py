"""Zero the device code of other GPU architectures in a CUDA library, so that it compresses to a fraction of its size.

    python benchmarks/gpu/trim_fat_binary.py libtransformer_engine.so --keep 90 --save trimmed.so
    python benchmarks/gpu/trim_fat_binary.py transformer_engine_cu13-2.20.2-*.whl --keep 90 --save trimmed/NAME.whl

nvcc stores device code for several architectures in containers ("fat binaries"): a header of 16 bytes (the number
0xBA55ED50, a version of 1, the header's size, the size of what follows), then entries, each with a header that holds
the kind (1: PTX, 2: machine code), its own size, the code's size, and the architecture (90: sm_90). Only the code of
architectures that are not kept is overwritten with zeros: sizes and offsets stay, and the loader, which picks the
entry of the card's architecture, never reads it. A card of an architecture that is not kept finds no code. In a wheel,
every library is trimmed and its digest in RECORD written anew.
"""

import argparse
import base64
import hashlib
import shutil
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<IHHQ")
"""Magic number, version, bytes of this header, bytes of all entries."""
ENTRY = struct.Struct("<HHIQ")
"""Kind, attributes, bytes of this header, bytes of the code."""
ARCHITECTURE_AT = 28
"""Offset of the architecture in an entry's header."""


class Entry(NamedTuple):
    """Device code in a library."""

    architecture: int
    start: int
    size: int


def entries(data: bytes | bytearray) -> Iterator[Entry]:
    """Every entry of every fat binary; what only looks like one is passed over."""
    at = data.find(MAGIC)
    while at >= 0:
        following = at + 4
        if at + CONTAINER.size <= len(data):
            _, version, header, size = CONTAINER.unpack_from(data, at)
            found = _entries_of(data, at + header, at + header + size) if (version, header) == (1, 16) else None
            if found is not None:
                yield from found
                following = at + header + size
        at = data.find(MAGIC, following)


def _entries_of(data: bytes | bytearray, start: int, end: int) -> list[Entry] | None:
    """Of one container; None where sizes do not add up."""
    found = []
    while start < end:
        if start + ARCHITECTURE_AT + 4 > min(end, len(data)):
            return None
        kind, _, header, size = ENTRY.unpack_from(data, start)
        if kind not in (1, 2) or header < ARCHITECTURE_AT + 4 or start + header + size > min(end, len(data)):
            return None
        (architecture,) = struct.unpack_from("<I", data, start + ARCHITECTURE_AT)
        found.append(Entry(architecture, start + header, size))
        start += header + size
    return found


def trim(data: bytes, keep: set[int]) -> tuple[bytes, Counter]:
    """``data`` with the code of all architectures but ``keep`` zeroed, and the bytes of each that were there.

    Raises ValueError where there is device code, but none for an architecture to keep.
    """
    trimmed, sizes = bytearray(data), Counter()
    for entry in entries(data):
        sizes[entry.architecture] += entry.size
        if entry.architecture not in keep:
            trimmed[entry.start : entry.start + entry.size] = bytes(entry.size)
    if sizes and not keep & sizes.keys():
        raise ValueError(f"it has code for {sorted(sizes)}, none for {sorted(keep)}")
    return bytes(trimmed), sizes


def trim_wheel(source: Path, target: Path, keep: set[int]) -> Counter:
    """Copy a wheel, its libraries trimmed, with digests that fit; the bytes of each architecture that were there.

    Raises ValueError where none of its libraries has device code for ``keep``.
    """
    total, records = Counter(), {}
    with zipfile.ZipFile(source) as wheel, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for member in sorted(wheel.infolist(), key=lambda member: member.filename.endswith(".dist-info/RECORD")):
            content = wheel.read(member)
            if member.filename.endswith(".so") and MAGIC in content and any(True for _ in entries(content)):
                content, sizes = trim(content, keep)
                total += sizes
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                records[member.filename] = f"{member.filename},sha256={digest},{len(content)}"
            if member.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines()
                content = "\n".join([*(records.get(line.split(",")[0], line) for line in lines), ""]).encode()
            new.writestr(member, content, zipfile.ZIP_DEFLATED)
    if not keep & total.keys():
        raise ValueError(f"it has code for {sorted(total)}, none for {sorted(keep)}")
    return total


def main() -> None:
    """Trim a library or a wheel, and say what was in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a shared library or a wheel")
    parser.add_argument("--keep", type=int, nargs="+", default=[90], metavar="N", help="architectures, 90 for sm_90")
    parser.add_argument("--save", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    try:
        if options.file.suffix == ".whl":
            sizes = trim_wheel(options.file, options.save, set(options.keep))
        else:
            content, sizes = trim(options.file.read_bytes(), set(options.keep))
            options.save.write_bytes(content)
            shutil.copymode(options.file, options.save)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        options.save.unlink(missing_ok=True)
        sys.exit(f"error: {options.file}: {error}")
    for architecture, size in sorted(sizes.items()):
        print(f"sm_{architecture}: {size / 2**20:.1f} MiB {'kept' if architecture in options.keep else 'zeroed'}")


if __name__ == "__main__":
    main()
