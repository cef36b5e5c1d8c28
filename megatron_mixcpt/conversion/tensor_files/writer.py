"""Write a Hugging Face folder's weights in shards, tensor by tensor, in any order and from any number of processes.

Every tensor's place follows from names, shapes and dtypes alone: the shards are laid out first (header, then tensors
one after the other), and each tensor is then written where it belongs. Memory is one tensor, whatever the shard size,
or one expert's of a tensor that holds those of all.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_mixcpt.conversion.tensor_files.reader import DTYPES, INDEX_NAME, SINGLE_NAME

MAX_SHARD_BYTES = 50_000_000_000  # what transformers 5 writes by default
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorShape:
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class SafetensorsWriter:
    """The shards of one folder."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorShape],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        single_name: str = SINGLE_NAME,
    ) -> None:
        """Lay the shards out; nothing is written yet. A tensor above ``max_shard_bytes`` gets a separate shard.

        ``single_name``: the name of the file where there is one alone.
        """
        self.folder, self.tensors = folder, tensors
        shards = _split(tensors, max_shard_bytes)
        self._headers: dict[str, bytes] = {}
        self._places: dict[str, tuple[str, int]] = {}
        for number, names in enumerate(shards, start=1):
            file = single_name if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._lay_out(file, names)

    def _lay_out(self, file: str, names: list[str]) -> None:
        fields: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            tensor = self.tensors[name]
            offsets = [end, end + tensor.num_bytes]
            fields[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            end = offsets[1]
        header = json.dumps(fields, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # tensors start aligned
        self._headers[file] = struct.pack("<Q", len(header)) + header
        for name in names:
            self._places[name] = (file, len(self._headers[file]) + fields[name]["data_offsets"][0])

    def create(self) -> None:
        """Write headers, files of their final size and, for several shards, the index: once, before any tensor."""
        sizes = dict.fromkeys(self._headers, 0)
        for name, (file, offset) in self._places.items():
            sizes[file] = max(sizes[file], offset + self.tensors[name].num_bytes)
        for file, header in self._headers.items():
            with (self.folder / file).open("wb") as stream:
                stream.write(header)
                stream.truncate(max(sizes[file], len(header)))
        if len(self._headers) > 1:
            total = sum(tensor.num_bytes for tensor in self.tensors.values())
            weight_map = {name: file for name, (file, _) in sorted(self._places.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, tensor: torch.Tensor, index: int | None = None) -> None:
        """Write one tensor, which must have the shape and dtype laid out, at its place.

        ``index``: write that one of the tensors stacked in the first axis.
        """
        expected = self.tensors[name].shape
        assert tuple(tensor.shape) == (expected if index is None else expected[1:]), (name, tensor.shape)
        self._write_at((index or 0) * tensor.nbytes, name, tensor)

    def write_rows(self, name: str, start: int, tensor: torch.Tensor) -> None:
        """Write rows of one tensor from the row ``start`` on."""
        assert tuple(tensor.shape[1:]) == self.tensors[name].shape[1:], (name, tensor.shape)
        row_bytes = torch.Size(tensor.shape[1:]).numel() * tensor.dtype.itemsize
        self._write_at(start * row_bytes, name, tensor)

    def _write_at(self, offset: int, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor of the dtype laid out, ``offset`` bytes behind the tensor's beginning."""
        assert tensor.dtype == self.tensors[name].dtype, (name, tensor.dtype)
        file, start = self._places[name]
        offset += start
        view = memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        descriptor = os.open(self.folder / file, os.O_WRONLY)
        try:
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        finally:
            os.close(descriptor)


def _split(tensors: Mapping[str, TensorShape], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.num_bytes
    return shards
