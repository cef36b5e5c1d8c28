"""Keys, stacked axes and folders of the engine's checkpoints."""

from pathlib import Path

import pytest

from megatron_mixcpt.conversion.megatron_layout import Place, find_iteration, place_of, stacks_layers
from megatron_mixcpt.errors import CheckpointError


@pytest.mark.parametrize(
    ("name", "place", "object_key"),
    [
        ("decoder.final_layernorm.weight", Place("decoder.final_layernorm.weight"), "/shard_0_1"),
        (
            "decoder.layers.3.mlp.linear_fc2.weight",
            Place("decoder.layers.mlp.linear_fc2.weight", (3,), (8,)),
            "/shard_3_8",
        ),
        (
            "decoder.layers.3.mlp.experts.1.linear_fc1.weight",
            Place("decoder.layers.mlp.experts.experts.linear_fc1.weight", (3, 1), (8, 4)),
            "/shard_3.1_8.4",
        ),
        ("decoder.layers.3.mlp.router.weight", Place("decoder.layers.mlp.router.weight", (3,), (8,)), "/shard_3_8"),
    ],
)
def test_layers_and_experts_are_leading_axes(name: str, place: Place, object_key: str) -> None:
    assert place_of(name, num_layers=8, num_experts=4) == place
    assert place.object_key == place.key + object_key


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("decoder.final_layernorm.weight", Place("decoder.final_layernorm.weight")),
        ("decoder.layers.3.mlp.linear_fc2.weight", Place("decoder.layers.3.mlp.linear_fc2.weight")),
        (
            "decoder.layers.3.mlp.experts.1.linear_fc1.weight",
            Place("decoder.layers.3.mlp.experts.experts.linear_fc1.weight", (1,), (4,)),
        ),
    ],
)
def test_layers_of_several_kinds_are_not_stacked(name: str, place: Place) -> None:
    assert place_of(name, num_layers=8, num_experts=4, stacked=False) == place


def test_which_layers_are_stacked() -> None:
    assert stacks_layers({"num_layers": 2}) and stacks_layers({"moe_layer_freq": 1, "linear_attention_freq": None})
    assert not stacks_layers({"moe_layer_freq": [0, 1]}) and not stacks_layers({"linear_attention_freq": [1, 0]})
    assert not stacks_layers({"moe_layer_freq": 2})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Iterations 10 and 20 and a release; the tracker file names 20."""
    for name in ("iter_0000010", "iter_0000020", "release"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.json").write_text("{}")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20\n")
    return tmp_path


def test_the_iteration_that_is_meant(folder: Path) -> None:
    assert find_iteration(folder) == folder / "iter_0000020"
    assert find_iteration(folder, 10) == folder / "iter_0000010"
    (folder / "latest_checkpointed_iteration.txt").write_text("release")
    assert find_iteration(folder) == folder / "release"


def test_what_is_no_iteration(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="has no iter_0000030; it has iter_0000010, iter_0000020, release"):
        find_iteration(folder, 30)
    with pytest.raises(CheckpointError, match="--iteration '-1': expected the number of an iteration"):
        find_iteration(folder, -1)
    (folder / "iter_0000010" / "metadata.json").unlink()
    with pytest.raises(CheckpointError, match="is not a complete torch_dist checkpoint: it has no metadata.json"):
        find_iteration(folder, 10)
    (folder / "latest_checkpointed_iteration.txt").write_text("../..")
    with pytest.raises(CheckpointError, match=r"iteration.txt '../..': expected the number of an iteration"):
        find_iteration(folder)
    (folder / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(CheckpointError, match="is not a Megatron checkpoint: it has no latest_checkpointed"):
        find_iteration(folder)
