"""Written shards are what the safetensors library reads, in any order of writing and at any shard size."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape

TENSORS = {
    "a": torch.arange(48, dtype=torch.float32).view(8, 6),
    "b": torch.arange(5).to(torch.bfloat16),
    "empty": torch.zeros(0, 3, dtype=torch.float16),
    "c": torch.arange(100, 104, dtype=torch.float32),
}


def write(folder: Path, max_shard_bytes: int) -> list[str]:
    """Write ``TENSORS``, the last first; returns the names of the shards."""
    shapes = {name: TensorShape(tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}
    writer = SafetensorsWriter(folder, shapes, max_shard_bytes)
    writer.create()
    for name in reversed(TENSORS):
        writer.write(name, TENSORS[name])
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize(("max_shard_bytes", "num_shards"), [(10_000, 1), (202, 2), (1, 4)])
def test_the_library_reads_what_was_written(tmp_path: Path, max_shard_bytes: int, num_shards: int) -> None:
    """192, 10, 0 and 16 bytes, laid out in order; a tensor above the limit gets a separate shard."""
    shards = write(tmp_path, max_shard_bytes)
    found = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / shard).items()}
    assert len(shards) == num_shards and found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    assert write(tmp_path, 10_000) == ["model.safetensors"]
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_the_index_places_every_tensor(tmp_path: Path) -> None:
    assert write(tmp_path, 202) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 192 + 10 + 16
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / shard)


def test_a_tensor_of_another_shape_is_a_bug(tmp_path: Path) -> None:
    writer = SafetensorsWriter(tmp_path, {"a": TensorShape((2,), torch.float32)})
    writer.create()
    with pytest.raises(AssertionError):
        writer.write("a", torch.zeros(3))
