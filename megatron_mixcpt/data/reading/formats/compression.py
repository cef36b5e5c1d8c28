"""Data files as streams of unpacked bytes; a file that is cut short gives an error rather than a shorter stream."""

import bz2
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from megatron_mixcpt.data.reading.input_format import Source

BUFFER_BYTES = 1 << 16
COMPRESSIONS = (".gz", ".bz2", ".zst")


@contextmanager
def open_unpacked(source: Source) -> Iterator[BinaryIO]:
    """Open a file of lines or text for reading, unpacked. Reading raises OSError or EOFError where it is damaged."""
    with open(source.path, "rb", buffering=BUFFER_BYTES) as file:
        if source.compression == ".gz":
            with gzip.open(file) as unpacked:
                yield io.BufferedReader(cast(io.RawIOBase, unpacked), BUFFER_BYTES)
        elif source.compression == ".bz2":
            with bz2.open(file) as unpacked:
                yield io.BufferedReader(cast(io.RawIOBase, unpacked), BUFFER_BYTES)
        elif source.compression == ".zst":
            yield io.BufferedReader(_ZstdFile(file), BUFFER_BYTES)
        else:
            yield file


class _ZstdFile(io.RawIOBase):
    """A .zst file, unpacked as it is read. Unlike zstandard's own reader it tells a cut file from a complete one."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._frame: Any = None  # a zstandard.ZstdDecompressionObj, whose package is imported when it is needed
        self._unpacked = memoryview(b"")
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            if not self._unpack_more():
                return 0
        size = min(len(buffer), len(self._unpacked))
        buffer[:size] = self._unpacked[:size]
        self._unpacked = self._unpacked[size:]
        return size

    def _unpack_more(self) -> bool:
        import zstandard

        packed = self._packed or self._file.read(128 << 10)
        self._packed = b""
        if not packed:
            if self._frame is not None:
                raise EOFError("the compressed data ends in the middle")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            self._unpacked = memoryview(self._frame.decompress(packed))
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        if self._frame.eof:
            self._packed, self._frame = self._frame.unused_data, None
        return True
