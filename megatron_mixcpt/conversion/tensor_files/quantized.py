"""Quantized weights, read as the bfloat16 numbers that transformers makes of them, slice by slice.

- FP8 (``quant_method`` ``fp8``): weights in float8_e4m3fn and ``weight_scale_inv``, a float32 scale for each block of
  them or one for all: DeepSeek-V3, Ministral 3, Qwen3-FP8. A weight is its number times its block's scale, in float32
  (transformers' ``Fp8Dequantize``).
- MXFP4 (``mxfp4``): experts in blocks of 32 numbers of four bits, two in a byte, which share an exponent: gpt-oss. A
  weight is one of 16 values times a power of 2 (transformers' ``convert_moe_packed_tensors``), and the tensor is the
  transpose of what is stored.

Scales of activations, which only FP8 kernels use, are dropped. A read takes what its rows and columns need.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_mixcpt.conversion.tensor_files.reader import TRAINED, SafetensorsFolder, TensorEntry
from megatron_mixcpt.errors import CheckpointError

FP4_VALUES = tuple(sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
CHUNK_NUMBERS = 2**24
"""Weights of FP8 that are in float32 at a time."""


class DequantizedFolder(SafetensorsFolder):
    """A folder whose quantized tensors appear as bfloat16 ones, under the names that transformers has in memory."""

    def __init__(self, folder: Path, block_size: Sequence[int] | None = None) -> None:
        """Read every header; raises CheckpointError for quantized weights without their scales, beside other damage.

        ``block_size``: rows and columns of FP8's blocks, ``weight_block_size``; None: they divide weights evenly.
        """
        self._stored, self._block_size = SafetensorsFolder(folder), block_size
        self.folder, self.bytes_read = folder, 0
        self._scales: dict[str, str] = {}
        self._blocks: dict[str, tuple[int, int]] = {}
        self._packed: dict[str, tuple[str, str]] = {}
        self.num_dropped = 0
        """Scales of activations."""
        self.entries = dict(self._presented())

    def _presented(self) -> Iterator[tuple[str, TensorEntry]]:
        for name, entry in self._stored.entries.items():
            if name.endswith((".activation_scale", ".input_scale")):
                self.num_dropped += 1
            elif name.endswith("_blocks"):
                yield self._unpacked(name, entry)
            elif entry.dtype == torch.float8_e4m3fn:
                yield name, self._unscaled(name, entry)
            elif not name.endswith(("_scales", ".weight_scale_inv")):
                yield name, entry

    def _unscaled(self, name: str, entry: TensorEntry) -> TensorEntry:
        self._scales[name] = re.sub(r"weight$", "weight_scale_inv", name)
        scales = self._partner(name, self._scales[name])
        if scales.dtype not in TRAINED or scales.shape not in ((), (1,)) and len(scales.shape) != len(entry.shape):
            raise CheckpointError(
                f"{scales.path}: scales of {name} are {scales.dtype} of shape {scales.shape}, and only numbers in "
                "floating point for blocks or for the whole weight can be read: use the unquantized checkpoint"
            )
        grid = scales.shape[-2:] if len(scales.shape) >= 2 else (1, 1)
        self._blocks[name] = self._block_of(name, entry, grid)
        return TensorEntry(entry.path, entry.offset, torch.bfloat16, entry.shape)

    def _block_of(self, name: str, entry: TensorEntry, grid: Sequence[int]) -> tuple[int, int]:
        """Rows and columns that share a scale; the last block of a weight may be a smaller one (DeepSeek-V3).

        transformers divides a weight evenly by its scales, which is the same but where the last block is smaller.
        """
        rows, columns = entry.shape[-2:]
        if tuple(grid) == (1, 1):
            return rows, columns
        height, width = self._block_size or (rows // max(1, grid[0]), columns // max(1, grid[1]))
        if not height or not width or tuple(grid) != (-(-rows // height), -(-columns // width)):
            raise CheckpointError(
                f"{entry.path}: {name} of shape {entry.shape} has scales for {grid[0]} by {grid[1]} blocks, which are "
                f"not of weight_block_size {[height, width]}: use the unquantized checkpoint"
            )
        return height, width

    def _unpacked(self, name: str, entry: TensorEntry) -> tuple[str, TensorEntry]:
        presented = name.removesuffix("_blocks")
        scales = self._partner(name, f"{presented}_scales")
        if len(entry.shape) != 4 or scales.shape != entry.shape[:-1] or entry.dtype != torch.uint8:
            raise CheckpointError(f"{entry.path}: {name} of shape {entry.shape} has scales of shape {scales.shape}")
        self._packed[presented] = (name, f"{presented}_scales")
        experts, rows, groups, width = entry.shape
        return presented, TensorEntry(entry.path, entry.offset, torch.bfloat16, (experts, 2 * groups * width, rows))

    def _partner(self, name: str, scales: str) -> TensorEntry:
        if scales not in self._stored.entries or scales == name:
            raise CheckpointError(f"{self.folder}: {name} is quantized and its scales, {scales}, are missing")
        return self._stored.entries[scales]

    def read_into(
        self,
        target: Tensor,
        name: str,
        rows: slice | None = None,
        columns: slice | None = None,
        index: int | None = None,
    ) -> None:
        """As of the base class."""
        if name not in self._scales and name not in self._packed:
            super().read_into(target, name, rows, columns, index)  # its entry is as it is stored
            return
        entry = self.entries[name]
        if index is None and len(entry.shape) == 3:
            for place, expert in enumerate(range(*(rows or slice(None)).indices(entry.shape[0]))):
                self.read_into(target[place], name, index=expert)
            return
        shape = entry.stacked(index).shape
        rows, columns = (
            slice(*(part or slice(None)).indices(size)[:2]) for part, size in zip((rows, columns), shape, strict=True)
        )
        before = self._stored.bytes_read
        if name in self._packed:
            target.copy_(self._read_packed(name, rows, columns, index))
        else:
            for part in _parts(rows, columns):
                target[part.start - rows.start : part.stop - rows.start] = self._read_scaled(name, part, columns, index)
        self.bytes_read += self._stored.bytes_read - before

    def _read_scaled(self, name: str, rows: slice, columns: slice, index: int | None) -> Tensor:
        """FP8: each number times the scale of its block."""
        scales = self._scale_grid(self._scales[name], index)
        row_blocks, column_blocks = (
            torch.arange(part.start, part.stop) // size
            for part, size in zip((rows, columns), self._blocks[name], strict=True)
        )
        numbers = self._stored.read(name, rows, columns, index).float()
        return (numbers * scales[row_blocks][:, column_blocks]).to(torch.bfloat16)

    def _scale_grid(self, name: str, index: int | None) -> Tensor:
        """[blocks of rows, blocks of columns], float32."""
        is_grid = len(self._stored.entries[name].shape) > 1
        scales = self._stored.read(name, index=index if is_grid else None).float()
        return scales if is_grid else scales.reshape(1, 1)

    def _read_packed(self, name: str, rows: slice, columns: slice, index: int | None) -> Tensor:
        """MXFP4: what is stored are the columns, each [groups, bytes] with an exponent for each group."""
        blocks, scales = (self._stored.read(part, columns, index=index) for part in self._packed[name])
        width = 2 * blocks.size(-1)
        groups = slice(rows.start // width, -(-rows.stop // width))
        blocks, exponents = blocks[:, groups], scales[:, groups].int() - 127
        values = torch.tensor(FP4_VALUES, dtype=torch.bfloat16, device="cpu")
        numbers = torch.stack([values[(blocks & 0x0F).int()], values[(blocks >> 4).int()]], dim=-1).flatten(-2)
        numbers = torch.ldexp(numbers, exponents.unsqueeze(-1)).flatten(1)
        start = rows.start - groups.start * width
        return numbers[:, start : start + rows.stop - rows.start].T


def _parts(rows: slice, columns: slice) -> Iterator[slice]:
    step = max(1, CHUNK_NUMBERS // max(1, columns.stop - columns.start))
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))
