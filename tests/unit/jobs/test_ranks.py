"""Outputs that are whole or absent: a full disk is one line, and leaves nothing behind."""

import errno
from pathlib import Path

import pytest

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.ranks import written_aside


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    message = "exported cannot be written: No space left on device; make room"
    with pytest.raises(CheckpointError, match=message), written_aside(tmp_path / "exported") as aside:
        (aside / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), written_aside(tmp_path / "exported") as aside:
        (aside / "nowhere" / "file").write_bytes(b"")
    assert not list(tmp_path.iterdir())
