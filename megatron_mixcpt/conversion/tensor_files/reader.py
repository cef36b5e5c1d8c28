"""Read the tensors of a Hugging Face folder: every header is checked first, then only the bytes asked for are read.

A safetensors file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, byte range) and the
raw tensors. It is parsed here rather than mapped into memory: a rank reads only its slices (counted in ``bytes_read``),
and memory is what the caller holds. Only JSON and safetensors are opened, so nothing in a model folder is executed.
"""

import json
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from megatron_mixcpt.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TRAINED = (torch.bfloat16, torch.float16, torch.float32)
DTYPES = {
    **{"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: file, absolute byte offset, dtype and shape."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def stacked(self, index: int | None) -> "TensorEntry":
        """One of the tensors stacked in this one's first axis; None: this one, a single number as one row."""
        if index is None:
            return self if self.shape else replace(self, shape=(1,))
        num_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, offset=self.offset + index * num_bytes, shape=self.shape[1:])


def read_json(path: Path) -> dict:
    """Parse a JSON object; raises :class:`CheckpointError` when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not a JSON object: download it again")
    return value


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Parse and check one file's header against the file's size; no tensor is read."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ranges = sorted(tuple(fields["data_offsets"]) for fields in header.values())
        entries = {name: _entry(path, 8 + length, name, fields) for name, fields in header.items()}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} ({size} bytes) has no readable header ({error}): download it again") from error
    end = 0
    for start, stop in ranges:
        if start != end:
            raise CheckpointError(f"{path} is damaged: tensors overlap or leave a gap at byte {end}: download it again")
        end = stop
    if 8 + length + end != size:
        raise CheckpointError(f"{path} is damaged: {size} bytes instead of {8 + length + end}: download it again")
    return entries


def _entry(path: Path, data_start: int, name: str, fields: dict) -> TensorEntry:
    dtype = DTYPES.get(fields["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name} is {fields['dtype']}, which is not one of {', '.join(DTYPES)}: "
            "use the unquantized checkpoint"
        )
    begin, end = fields["data_offsets"]
    shape = tuple(fields["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"tensor {name} of shape {shape} at {begin} to {end}")
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{path} is damaged: tensor {name} of shape {shape} has {end - begin} bytes: download it again"
        )
    return TensorEntry(path, data_start + begin, dtype, shape)


class SafetensorsFolder:
    """The tensors of a folder, by name, over one file or the shards of an index."""

    def __init__(self, folder: Path, single_name: str = SINGLE_NAME) -> None:
        """Read every header; raises :class:`CheckpointError` for what is missing, damaged or duplicated.

        ``single_name``: the name of the file where there is one alone.
        """
        self.folder = folder
        self.bytes_read = 0
        self.entries: dict[str, TensorEntry] = {}
        index, single = folder / f"{single_name}.index.json", folder / single_name
        if index.exists() and single.exists():
            raise CheckpointError(f"{folder} holds both {index.name} and {single_name}: remove the stale one")
        if index.exists():
            self._read_shards(index)
        elif single.exists():
            self.entries = read_header(single)
        else:
            raise CheckpointError(_explain_missing_weights(folder))

    def _read_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map: download it again")
        strays = [shard for shard in weight_map.values() if not isinstance(shard, str) or Path(shard).name != shard]
        if strays:
            raise CheckpointError(f"{index} names {strays[0]!r}, which is not a file of its folder: download it again")
        shards = sorted(set(weight_map.values()))
        missing = [shard for shard in shards if not (self.folder / shard).is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder} lacks {len(missing)} of {len(shards)} shards named in {INDEX_NAME}: {missing[0]}"
            )
        for shard in shards:
            self._add_shard(shard, weight_map)
        absent = sorted(set(weight_map) - set(self.entries))
        if absent:
            raise CheckpointError(
                f"{index} places {absent[0]} in {weight_map[absent[0]]}, which does not hold it: download both again"
            )

    def _add_shard(self, shard: str, weight_map: dict[str, str]) -> None:
        for name, entry in read_header(self.folder / shard).items():
            if name in self.entries:
                first = self.entries[name].path.name
                raise CheckpointError(f"{self.folder}: tensor {name} is in both {first} and {shard}: download it again")
            if weight_map.get(name) != shard:
                place = weight_map.get(name, "no file")
                raise CheckpointError(
                    f"{self.folder / shard} holds {name}, which {INDEX_NAME} places in {place}: download both again"
                )
            self.entries[name] = entry

    def read(
        self, name: str, rows: slice | None = None, columns: slice | None = None, index: int | None = None
    ) -> torch.Tensor:
        """Read [rows, columns] of one tensor (all of it by default) into fresh CPU memory, in the file's dtype.

        ``index``: read from that one of the tensors stacked in the first axis.
        """
        entry = self.entries[name].stacked(index)
        start, stop, _ = (rows or slice(None)).indices(entry.shape[0])
        shape = [stop - start, *entry.shape[1:]]
        if columns is not None:
            left, right, _ = columns.indices(entry.shape[1])
            shape[1] = right - left
        target = torch.empty(shape, dtype=entry.dtype)
        self.read_into(target, name, slice(start, stop), columns, index)
        return target

    def read_into(
        self,
        target: torch.Tensor,
        name: str,
        rows: slice | None = None,
        columns: slice | None = None,
        index: int | None = None,
    ) -> None:
        """As :meth:`read`, into ``target``: contiguous, on the CPU, of that shape and dtype."""
        entry = self.entries[name].stacked(index)
        start, _, _ = (rows or slice(None)).indices(entry.shape[0])
        row_bytes = torch.Size(entry.shape[1:]).numel() * entry.dtype.itemsize
        view = memoryview(target.view(-1).view(torch.uint8).numpy())
        with entry.path.open("rb", buffering=0) as file:
            if columns is None or target.shape[1] == entry.shape[1]:
                self._fill(file.fileno(), view, entry.offset + start * row_bytes, entry.path)
                return
            left, width = (columns.start or 0) * entry.dtype.itemsize, target.shape[1] * entry.dtype.itemsize
            for row in range(target.shape[0]):
                part = view[row * width : (row + 1) * width]
                self._fill(file.fileno(), part, entry.offset + (start + row) * row_bytes + left, entry.path)

    def _fill(self, descriptor: int, view: memoryview, offset: int, path: Path) -> None:
        done = 0
        while done < len(view):  # one call returns at most 2 GiB
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read: start again")
            done += count
        self.bytes_read += done


def _explain_missing_weights(folder: Path) -> str:
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        return (
            f"{folder} holds pickled weights only ({pickles[0]}), which run code when opened: save them again as "
            "safetensors (transformers: from_pretrained, then save_pretrained) on a machine where that is safe"
        )
    return f"{folder} holds neither {SINGLE_NAME} nor {INDEX_NAME}: download the safetensors files"
