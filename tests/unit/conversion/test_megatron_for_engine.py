"""A checkpoint that would run code when loaded is refused before; one that another program wrote gives a warning."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import save

from megatron_mixcpt.conversion.megatron_for_engine import open_for_engine
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError


class Hostile:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def checkpoint_with(folder: Path, value: object) -> Path:
    """A checkpoint of a tensor and one object, as if of this project's making; returns its folder."""
    target = folder / "iter_0000001"
    folder.mkdir(exist_ok=True)
    save({"weight": torch.zeros(2), "common_state/shard_0_1": [value]}, checkpoint_id=target, no_dist=True)
    (target / "metadata.json").write_text("{}")
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    (folder / "hf").mkdir()
    (folder / "hf" / "source.json").write_text("{}")
    return folder


def test_objects_that_name_functions_are_refused(tmp_path: Path) -> None:
    open_for_engine(checkpoint_with(tmp_path / "good", {"iteration": 1}))
    hostile = checkpoint_with(tmp_path / "bad", Hostile(tmp_path / "marker"))
    with pytest.raises(
        CheckpointError, match="common_state/shard_0_1: loading it would run code that it names"
    ) as caught:
        open_for_engine(hostile)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="common_state/shard_0_1 cannot be read"):
        MegatronCheckpoint(hostile).arguments()
    assert not (tmp_path / "marker").exists()


def test_an_index_that_names_functions_is_refused(tmp_path: Path) -> None:
    index = checkpoint_with(tmp_path, {}) / "iter_0000001" / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    metadata.planner_data = Hostile(tmp_path / "marker")
    index.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"\.metadata names posix.system"):
        open_for_engine(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_of_another_program_gives_a_warning(tmp_path: Path) -> None:
    folder = checkpoint_with(tmp_path, {})
    (folder / "hf" / "source.json").unlink()
    with pytest.warns(UserWarning, match=r"was not written by megatron-mixcpt \(it has no hf/source.json\)"):
        open_for_engine(folder)
