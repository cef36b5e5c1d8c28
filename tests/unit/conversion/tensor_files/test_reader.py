"""Reading safetensors: only the bytes asked for, and one clear line for every kind of damage."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_mixcpt.conversion.tensor_files.reader import INDEX_NAME, SINGLE_NAME, SafetensorsFolder
from megatron_mixcpt.errors import CheckpointError

TENSORS = {
    "a": torch.arange(48, dtype=torch.float32).view(8, 6),
    "b": torch.arange(5).to(torch.bfloat16),
    "c": torch.zeros(0, 3, dtype=torch.float16),
}


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / SINGLE_NAME)
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def write_index(folder: Path, weight_map: dict) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFolder(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_reads_what_the_library_wrote(single):
    reader = SafetensorsFolder(single)
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(reader.read(name), tensor, rtol=0, atol=0)


def test_reads_only_the_slices(single):
    reader = SafetensorsFolder(single)
    part = reader.read("a", slice(2, 5), slice(1, 3))
    torch.testing.assert_close(part, TENSORS["a"][2:5, 1:3], rtol=0, atol=0)
    assert reader.bytes_read == 3 * 2 * 4
    reader.read("a", slice(6, 8))
    assert reader.bytes_read == 24 + 2 * 6 * 4


def test_reads_over_shards(sharded):
    torch.testing.assert_close(SafetensorsFolder(sharded).read("b"), TENSORS["b"], rtol=0, atol=0)


def test_missing_shard(sharded):
    (sharded / "two.safetensors").unlink()
    assert "lacks 1 of 2 shards named in model.safetensors.index.json: two.safetensors" in refusal(sharded)


def test_index_that_names_a_tensor_no_shard_holds(sharded):
    write_index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "z": "two.safetensors"})
    assert "places z in two.safetensors, which does not hold it" in refusal(sharded)


def test_index_that_places_a_tensor_elsewhere(sharded):
    write_index(sharded, {"a": "two.safetensors", "b": "one.safetensors"})
    assert "one.safetensors holds a, which model.safetensors.index.json places in two.safetensors" in refusal(sharded)


def test_tensor_in_two_shards(sharded):
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, sharded / "two.safetensors")
    assert "tensor a is in both one.safetensors and two.safetensors" in refusal(sharded)


def test_single_file_beside_an_index(sharded):
    save_file(TENSORS, sharded / SINGLE_NAME)
    assert "holds both" in refusal(sharded)


@pytest.mark.parametrize("kept", [4, 40, -1])
def test_truncated(single, kept):
    path = single / SINGLE_NAME
    path.write_bytes(path.read_bytes()[:kept])
    assert "download it again" in refusal(single)


def test_a_header_that_is_not_one(single):
    (single / SINGLE_NAME).write_bytes(struct.pack("<Q", 2) + b"[]")
    assert "has no readable header" in refusal(single)
    (single / SINGLE_NAME).write_bytes(b"<html>not found</html>")
    assert "has no readable header" in refusal(single)


def test_overlapping_tensors(single):
    field = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": field, "b": field}).encode()
    (single / SINGLE_NAME).write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    assert "tensors overlap or leave a gap at byte 8" in refusal(single)


def test_dtypes_that_torch_lacks(single):
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (single / SINGLE_NAME).write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    assert "tensor a is F4, which is not one of BF16" in refusal(single)


def test_pickles_are_refused_with_the_way_out(tmp_path):
    assert "holds neither model.safetensors nor" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickled weights only (pytorch_model.bin), which run code when opened: save them again" in refusal(tmp_path)
