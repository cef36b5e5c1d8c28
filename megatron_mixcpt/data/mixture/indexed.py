"""The engine's indexed dataset, a pair of files, written and read with numpy alone.

``<prefix>.bin`` is every token of every document, one after the other. ``<prefix>.idx`` says where documents lie::

    offset  bytes  what
         0      9  b"MMIDIDX\\0\\0"
         9      8  version, 1                           uint64
        17      1  token type: 4 = int32, 8 = uint16    uint8
        18      8  n, the number of sequences           uint64
        26      8  d + 1, documents and one             uint64
        34     4n  length of each sequence, in tokens   int32
            8n     start of each sequence, in bytes     int64
            8(d+1) first sequence of each document, n   int64

All numbers are little-endian. Here each document is one sequence, so d = n and the last array is 0, 1, ..., n. The
bytes equal those of ``IndexedDatasetBuilder`` (megatron/core/datasets/indexed_dataset.py), which imports torch.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_mixcpt.errors import DataError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
HEADER_BYTES = 34
TOKEN_TYPES: dict[int, np.dtype] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}


class IndexHeader(NamedTuple):
    """What an .idx file says before its arrays."""

    token_type: np.dtype
    num_sequences: int
    num_document_bounds: int

    @property
    def file_bytes(self) -> int:
        """The size in bytes that the whole .idx file must have."""
        return HEADER_BYTES + 12 * self.num_sequences + 8 * self.num_document_bounds


def token_type_for(vocab_size: int) -> np.dtype:
    """The type the engine gives tokens of a vocabulary (``DType.optimal_dtype``): uint16 below 65500, else int32."""
    return TOKEN_TYPES[8] if vocab_size < 65500 else TOKEN_TYPES[4]


def write_index(path: Path, lengths: np.ndarray, token_type: np.dtype, chunk: int = 1 << 20) -> None:
    """Write the .idx of a dataset whose documents are one sequence each.

    ``lengths`` holds tokens per document (int32, may be a memory map). The arrays are written ``chunk`` entries at a
    time, so that memory does not grow with the number of documents.
    """
    code = next(code for code, known in TOKEN_TYPES.items() if known == token_type)
    num = len(lengths)
    with open(path, "wb") as file:
        file.write(INDEX_MAGIC + struct.pack("<QBQQ", 1, code, num, num + 1))
        for start in range(0, num, chunk):
            np.asarray(lengths[start : start + chunk], "<i4").tofile(file)
        offset = 0
        for start in range(0, num, chunk):
            ends = offset + np.cumsum(lengths[start : start + chunk], dtype="<i8") * token_type.itemsize
            np.concatenate(([offset], ends[:-1])).astype("<i8").tofile(file)
            offset = int(ends[-1])
        for start in range(0, num + 1, chunk):
            np.arange(start, min(start + chunk, num + 1), dtype="<i8").tofile(file)


def read_header(path: Path) -> IndexHeader:
    """Read and check the head of an .idx file.

    Raises DataError where the file is missing, is not an index, or is shorter or longer than its head says.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run tools/preprocess_mixture.py again") from error
    if len(head) < HEADER_BYTES or not head.startswith(INDEX_MAGIC):
        raise DataError(f"{path}: not an index of tokens; run tools/preprocess_mixture.py again")
    version, code, num_sequences, num_bounds = struct.unpack("<QBQQ", head[len(INDEX_MAGIC) :])
    if version != 1 or code not in TOKEN_TYPES:
        raise DataError(f"{path}: version {version} with token type {code} is unknown; expected version 1, type 4 or 8")
    header = IndexHeader(TOKEN_TYPES[code], num_sequences, num_bounds)
    if path.stat().st_size != header.file_bytes:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes where its head promises {header.file_bytes}; "
            "the file is cut short or damaged, run tools/preprocess_mixture.py again"
        )
    return header


def read_lengths(path: Path) -> np.ndarray:
    """Tokens per document of an .idx file: int32 ``[num_sequences]``, a read-only memory map. Raises DataError."""
    header = read_header(path)
    if header.num_sequences == 0:
        return np.zeros(0, "<i4")
    return np.memmap(path, "<i4", mode="r", offset=HEADER_BYTES, shape=(header.num_sequences,))


def check_dataset(prefix: Path) -> tuple[int, int]:
    """Check that a .bin/.idx pair belong together, and return its (samples, tokens).

    Raises DataError where the .bin has not exactly the bytes that the .idx promises: the trace of a copy that stopped,
    or of two runs whose files got mixed. Or where the .idx says that documents lie elsewhere than one after the other.
    """
    index_path, token_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    header = read_header(index_path)
    tokens = _check_places(index_path, header)
    expected_bytes = tokens * header.token_type.itemsize
    actual_bytes = token_path.stat().st_size if token_path.exists() else None
    if actual_bytes != expected_bytes:
        found = "is missing" if actual_bytes is None else f"has {actual_bytes} bytes"
        raise DataError(
            f"{token_path}: {found} where {index_path.name} promises {expected_bytes}; "
            "the pair does not belong together, run tools/preprocess_mixture.py again"
        )
    return header.num_sequences, tokens


def _check_places(path: Path, header: IndexHeader, chunk: int = 1 << 20) -> int:
    """The sum of an index's lengths, once its other two arrays are known to follow from them. Raises DataError."""
    num, tokens = header.num_sequences, 0
    damaged = DataError(f"{path}: its documents do not follow one another; run tools/preprocess_mixture.py again")
    if header.num_document_bounds != num + 1:
        raise damaged
    arrays = np.memmap(path, "u1", mode="r", offset=HEADER_BYTES)
    lengths, starts, bounds = arrays[: 4 * num].view("<i4"), arrays[4 * num : 12 * num], arrays[12 * num :]
    starts, bounds = starts.view("<i8"), bounds.view("<i8")
    for first in range(0, num + 1, chunk):
        part = slice(first, first + chunk)
        ends = tokens + np.cumsum(lengths[part], dtype="<i8")
        places = np.concatenate(([tokens], ends))[: len(ends)] * header.token_type.itemsize
        if (
            (lengths[part] < 0).any()
            or not np.array_equal(starts[part], places)
            or not np.array_equal(bounds[part], np.arange(first, min(first + chunk, num + 1)))
        ):
            raise damaged
        tokens = int(ends[-1]) if len(ends) else tokens
    return tokens
