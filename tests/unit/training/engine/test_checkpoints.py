"""``--keep-last`` on folders of complete and incomplete iterations, and what is settled before the engine loads."""

import contextlib
import errno
import os
import resource
import shutil
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf


def test_checkpoints_are_pruned_and_settled(tmp_path: Path) -> None:
    convert_from_hf(tiny_hf.save("llama", tmp_path / "hf", torch.bfloat16), tmp_path / "megatron")
    run_distributed(check_folders, 1, str(tmp_path), cpu_emulation=True)


def check_folders(root: str) -> None:
    release = Path(root) / "megatron" / "release"
    check_prune(release, Path(root) / "pruned")
    check_settle(release, Path(root) / "settled")
    check_flushed_before_deletion(release, Path(root) / "flushed")
    check_disk_errors(release, Path(root) / "full")


def check_prune(release: Path, save: Path) -> None:
    """Incomplete ones do not count; what is beyond the tracker's iteration is not this run's."""
    from megatron_mixcpt.training.engine.checkpoints import prune

    make_iterations(release, save, tracker=40)
    tear(save / "iter_0000030")
    prune(save, keep_last=2)
    join_deletions()
    assert sorted(path.name for path in save.iterdir() if path.is_dir()) == [
        "iter_0000020",
        "iter_0000030",
        "iter_0000040",
        "iter_0000050",
    ]
    tear(save / "iter_0000040")
    prune(save, keep_last=1)
    join_deletions()
    assert (save / "iter_0000020").is_dir(), "the only whole one up to the tracker's was deleted"


def check_flushed_before_deletion(release: Path, save: Path) -> None:
    """A power failure after the deletion must find the new iteration on the disk: its files, its name, the tracker."""
    from megatron_mixcpt.training.engine.checkpoints import _settle_saved

    make_iterations(release, save, tracker=50)
    flushed, fsync = [], os.fsync

    def recorded(descriptor: int) -> None:
        assert save in flushed or (save / "iter_0000040").is_dir(), "deleted before the new iteration was flushed"
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    with mock.patch.object(os, "fsync", recorded):
        _settle_saved(save, keep_last=1)
    join_deletions()
    newest, tracker = save / "iter_0000050", save / "latest_checkpointed_iteration.txt"
    assert {*newest.rglob("*"), newest, tracker, save} == set(flushed)
    assert flushed.index(newest) < flushed.index(tracker) < flushed.index(save)
    assert flushed[-4:] == [save] * 4, "the new name of each older one is flushed before it is deleted"
    assert [path.name for path in save.glob("iter_*")] == ["iter_0000050"]


def check_settle(release: Path, save: Path) -> None:
    from megatron_mixcpt.training.engine.checkpoints import resumable, settle_checkpoints

    make_iterations(release, save, tracker=40)
    shutil.copytree(save / "iter_0000010", save / ".removed-iter_0000010")
    tear(save / "iter_0000040")
    assert resumable(str(save)).iteration == 30
    args = Namespace(save=str(save), load=str(save), ckpt_step=None)
    settle_checkpoints(args)
    assert (save / "latest_checkpointed_iteration.txt").read_text() == "30"
    assert not (save / ".removed-iter_0000010").exists()
    with pytest.raises(CheckpointError, match=r"--ckpt-step 40: .*iter_0000040 is incomplete"):
        resumable(str(save), 40)
    assert resumable(str(save), 20).iteration == 20
    assert resumable(None) is None and resumable(str(save / "nowhere")) is None


def check_disk_errors(release: Path, save: Path) -> None:
    """As the system raises them, as the engine hands them on, and others, which are nobody's to explain."""
    from megatron_mixcpt.training.engine import checkpoints

    def explain(error: BaseException) -> None:
        checkpoints._explained(mock.Mock(side_effect=error))()

    make_iterations(release, save, tracker=40)
    full = OSError(errno.ENOSPC, "No space left on device", "metadata.json")
    worker = RuntimeError("Worker failure: An error is caught while starting worker 0, error: <class 'OSError'>")
    chained = RuntimeError("Worker failure")
    chained.__cause__ = full
    with mock.patch.object(checkpoints, "get_args", return_value=Namespace(save=str(save))):
        for error in (full, chained, CheckpointException("write", {1: (full, None)})):
            expected = rf"{save} \(.* GiB free\): \[Errno 28\] No space left on device.*; iter_0000040 is complete"
            with pytest.raises(CheckpointError, match=expected):
                explain(error)
        with pytest.raises(RuntimeError, match="Worker failure"):
            explain(worker)  # the disk is not at fault: it can be written to
        with no_large_files(), pytest.raises(CheckpointError, match=r"GiB free\): \[Errno 27\] File too large; iter"):
            explain(CheckpointException("write", {1: (worker, None)}))


@contextlib.contextmanager
def no_large_files() -> Iterator[None]:
    """Files of this process cannot grow beyond a kilobyte, as where a disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_iterations(release: Path, save: Path, tracker: int) -> None:
    for number in (10, 20, 30, 40, 50):
        shutil.copytree(release, save / f"iter_{number:07d}")
    (save / "latest_checkpointed_iteration.txt").write_text(str(tracker))


def tear(folder: Path) -> None:
    data = next(path for path in sorted(folder.glob("*.distcp")) if path.stat().st_size)
    os.truncate(data, 1)


def join_deletions() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
