"""Quantized weights against transformers' own dequantisation, bit for bit, whole and by slices."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from megatron_mixcpt.conversion.tensor_files import quantized
from megatron_mixcpt.conversion.tensor_files.quantized import DequantizedFolder
from megatron_mixcpt.conversion.tensor_files.reader import SINGLE_NAME
from megatron_mixcpt.errors import CheckpointError

ALL_CODES = torch.arange(256, dtype=torch.uint8)


def numbers_of_fp8(*shape: int) -> torch.Tensor:
    """Every code of float8_e4m3fn but nan's two, over and over."""
    codes = ALL_CODES[(ALL_CODES & 0x7F) != 0x7F]
    return (
        codes.repeat(-(-torch.Size(shape).numel() // len(codes)))[: torch.Size(shape).numel()]
        .view(shape)
        .view(torch.float8_e4m3fn)
    )


def scales_of(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 1e-2


def folder_of(path: Path, tensors: dict[str, torch.Tensor]) -> DequantizedFolder:
    save_file(tensors, path / "model.safetensors")
    return DequantizedFolder(path)


@pytest.mark.parametrize("grid", [(2, 3), (1, 1), ()], ids=str)
def test_fp8_is_what_transformers_makes_of_it(
    grid: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "CHUNK_NUMBERS", 500)  # several parts
    weight, scales = numbers_of_fp8(64, 48), scales_of(*grid)
    other = torch.ones(3, dtype=torch.bfloat16)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scales, "a.activation_scale": torch.ones(()), "b": other}
    folder = folder_of(tmp_path, tensors)
    expected = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scales, torch.bfloat16)
    assert folder.entries.keys() == {"a.weight", "b"} and folder.num_dropped == 1
    assert torch.equal(folder.read("a.weight"), expected)
    assert torch.equal(folder.read("a.weight", slice(30, 41), slice(10, 37)), expected[30:41, 10:37])
    assert torch.equal(folder.read("b"), other)


def test_fp8_of_stacked_experts(tmp_path: Path) -> None:
    weight, scales = numbers_of_fp8(3, 32, 16), scales_of(3, 2, 2)
    folder = folder_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scales})
    expected = Fp8Dequantize(SimpleNamespace())._dequantize_one(weight, scales, torch.bfloat16)
    assert torch.equal(folder.read("a.weight", slice(3, 20), index=1), expected[1, 3:20])
    assert torch.equal(folder.read("a.weight", slice(1, 3)), expected[1:])


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    """Every pair of numbers, with exponents from the smallest to the largest of bfloat16."""
    blocks = ALL_CODES.repeat(12).view(2, 24, 4, 16)
    scales = torch.linspace(0, 254, 2 * 24 * 4).to(torch.uint8).view(2, 24, 4)
    folder = folder_of(tmp_path, {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales})
    expected = convert_moe_packed_tensors(blocks.clone(), scales.clone())
    assert folder.entries["e.gate_up_proj"].shape == tuple(expected.shape) == (2, 128, 24)
    assert torch.equal(folder.read("e.gate_up_proj"), expected)
    part = folder.read("e.gate_up_proj", slice(37, 101), slice(5, 20), index=1)
    assert torch.equal(part, expected[1, 37:101, 5:20])


def test_a_slice_reads_what_it_needs(tmp_path: Path) -> None:
    blocks, scales = torch.zeros(4, 24, 4, 16, dtype=torch.uint8), torch.zeros(4, 24, 4, dtype=torch.uint8)
    folder = folder_of(tmp_path, {"e.down_proj_blocks": blocks, "e.down_proj_scales": scales})
    folder.read("e.down_proj", None, slice(0, 6), index=2)
    assert folder.bytes_read == 6 * (4 * 16 + 4)


def test_what_is_missing_or_uneven_is_refused(tmp_path: Path) -> None:
    weight = numbers_of_fp8(64, 48)
    with pytest.raises(CheckpointError, match="a.weight is quantized and its scales, a.weight_scale_inv, are missing"):
        folder_of(tmp_path, {"a.weight": weight})
    with pytest.raises(CheckpointError, match=r"\(64, 48\) has scales for 3 by 1 blocks, which are not of weight_b"):
        folder_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scales_of(3, 1)})
    blocks = torch.zeros(4, 24, 4, 16, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="e_scales, are missing"):
        folder_of(tmp_path, {"e_blocks": blocks})


def test_a_last_block_may_be_smaller(tmp_path: Path) -> None:
    """As in DeepSeek-V3's projections of 576 rows: blocks are of 128 rows from the first on, by a loop over them."""
    weight, scales = numbers_of_fp8(192, 160), scales_of(2, 2)
    save_file({"a.weight": weight, "a.weight_scale_inv": scales}, tmp_path / SINGLE_NAME)
    expected = torch.empty(192, 160, dtype=torch.bfloat16)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        block = (slice(128 * row, 128 * (row + 1)), slice(128 * column, 128 * (column + 1)))
        expected[block] = (weight[block].float() * scales[row, column]).bfloat16()
    folder = DequantizedFolder(tmp_path, (128, 128))
    assert torch.equal(folder.read("a.weight"), expected)
    assert torch.equal(folder.read("a.weight", slice(100, 150), slice(120, 140)), expected[100:150, 120:140])


def test_what_would_be_misread_is_refused(tmp_path: Path) -> None:
    """Scales of blocks of another size, bytes that are exponents, and a scale for each row."""
    save_file({"a.weight": numbers_of_fp8(192, 128), "a.weight_scale_inv": scales_of(3, 1)}, tmp_path / SINGLE_NAME)
    with pytest.raises(CheckpointError, match=r"scales for 3 by 1 blocks, which are not of weight_block_size \[128"):
        DequantizedFolder(tmp_path, (128, 128))
    weight, exponents = numbers_of_fp8(64, 48), torch.full((2, 3), 120, dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=r"scales of a.weight are torch.uint8 of shape \(2, 3\)"):
        folder_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": exponents})
    with pytest.raises(CheckpointError, match=r"torch.float32 of shape \(64,\)"):
        folder_of(tmp_path, {"a.weight": weight, "a.weight_scale_inv": scales_of(64)})
