"""A folder written by all processes together: complete or absent, and one line on what stood in the way."""

import errno
import os
from pathlib import Path

import pytest

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.ranks import get_rank, get_world_size, process_group_of_torchrun, whole_folder_of_ranks
from megatron_mixcpt.testing import run_distributed

FULL = "exported could not be written: No space left on device; free some space and start again"


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=FULL), whole_folder_of_ranks(tmp_path / "exported") as aside:
        (aside / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_disk_that_is_full_when_flushed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=FULL), whole_folder_of_ranks(tmp_path / "exported") as aside:
        (aside / "model.safetensors").write_bytes(b"whole")
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_folder_of_ranks(tmp_path / "exported") as aside:
        (aside / "nowhere" / "file").write_bytes(b"")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "exported").mkdir()
    with whole_folder_of_ranks(tmp_path / "exported") as aside:
        (aside / "file").write_bytes(b"first")
    message = "exported already exists: choose another --save folder, or delete this one"
    with pytest.raises(CheckpointError, match=message), whole_folder_of_ranks(tmp_path / "exported"):
        pytest.fail("the block was entered")
    assert (tmp_path / "exported" / "file").read_bytes() == b"first"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    message = "exported could not be written: Not a directory"
    with pytest.raises(CheckpointError, match=message), whole_folder_of_ranks(tmp_path / "file" / "exported"):
        pytest.fail("the block was entered")


def test_one_process_needs_no_group() -> None:
    with process_group_of_torchrun() as rank:
        assert (rank, get_rank(), get_world_size()) == (0, 0, 1)


def test_ranks_write_one_folder(tmp_path: Path) -> None:
    run_distributed(write_together, 2, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def write_together(folder: str) -> None:
    target = Path(folder, "out")
    with whole_folder_of_ranks(target) as aside:
        (aside / str(get_rank())).write_text("done")
        assert not target.exists()
    assert (target / "1").is_file()
