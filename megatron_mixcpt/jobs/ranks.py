"""Processes that share a job, and an output folder that they write together: complete, or absent."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.whole_outputs import aside_of, flush_all, make_aside, publish

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def process_group_of_torchrun() -> Iterator[int]:
    """A gloo process group where ``torchrun`` started this process, none where it did not; yields the rank."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    try:
        yield get_rank()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def whole_folder_of_ranks(target: Path) -> Iterator[Path]:
    """:func:`~megatron_mixcpt.jobs.whole_outputs.whole_folder`, written by all processes together; each must call.

    Every process flushes what it wrote, for on a network file system no other can; then the first renames the folder.

    Raises:
        CheckpointError: ``target`` already exists, or it could not be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists: choose another --save folder, or delete this one")
    if get_rank() == 0:
        try:
            make_aside(target)
        except OSError as error:
            raise CheckpointError(f"{target} could not be written: {error.strerror}") from error
    barrier()
    aside = aside_of(target)
    try:
        yield aside
        barrier()
        flush_all(aside)
        barrier()
        if get_rank() == 0:
            publish(aside, target)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            reason = f"{error.strerror}; free some space and start again"
            raise CheckpointError(f"{target} could not be written: {reason}") from error
        raise
    barrier()


def get_rank() -> int:
    """This process among those that share the work; 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for the other processes, where there are any."""
    if dist.is_initialized():
        dist.barrier()
