"""What is written is read back, by name and place, and the folder is one that the engine would have left.

The engine's own loader reads it in ``tests/distributed/test_families.py``; memory: ``test_convert.py``.
"""

from functools import partial
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint
from megatron_mixcpt.conversion.megatron_layout import Place, place_of
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.megatron_writer import TensorSource, write_release
from megatron_mixcpt.errors import CheckpointError

NORM = "decoder.final_layernorm.weight"
LAYERS = [f"decoder.layers.{layer}.mlp.linear_fc2.weight" for layer in (0, 1)]
SHAPES = {NORM: (3,), **dict.fromkeys(LAYERS, (2, 3))}


def fill(value: float, target: torch.Tensor) -> None:
    target.fill_(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A release with a norm of ones and two layers of twos and threes."""
    sources = [
        TensorSource(place_of(name, num_layers=2), shape, torch.bfloat16, partial(fill, value))
        for value, (name, shape) in enumerate(SHAPES.items(), start=1)
    ]
    write_release(tmp_path, sources, {"num_layers": 2})
    return tmp_path


def test_it_is_read_back(folder: Path) -> None:
    checkpoint = MegatronCheckpoint(folder)
    assert (checkpoint.folder, checkpoint.iteration) == (folder / "release", 0)
    assert checkpoint.model_tensors().keys() >= {NORM, "decoder.layers.mlp.linear_fc2.weight"}
    assert checkpoint.model_tensors()["decoder.layers.mlp.linear_fc2.weight"] == (torch.Size((2, 2, 3)), torch.bfloat16)
    for value, (name, shape) in enumerate(SHAPES.items(), start=1):
        expected = torch.full(shape, float(value), dtype=torch.bfloat16)
        torch.testing.assert_close(checkpoint.read(place_of(name, num_layers=2)), expected, rtol=0, atol=0)
    assert checkpoint.arguments() == {"num_layers": 2}


def test_it_is_complete(folder: Path) -> None:
    assert choose_checkpoint(folder) == (folder / "release", None)


def test_modules_have_the_state_that_transformer_engine_looks_for(folder: Path) -> None:
    keys = MegatronCheckpoint(folder).objects()
    assert "decoder.final_layernorm._extra_state/shard_0_1" in keys
    assert {f"decoder.layers.mlp.linear_fc2._extra_state/shard_{layer}_2" for layer in (0, 1)} <= set(keys)
    assert {f"decoder.layers.self_attention.core_attention._extra_state/shard_{layer}_2" for layer in (0, 1)} <= set(
        keys
    )


def test_a_tensor_with_a_part_missing(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="linear_fc2.weight holds 0 of 6 values: copy it again"):
        MegatronCheckpoint(folder).read(Place("decoder.layers.mlp.linear_fc2.weight", (2,), (2,)))
