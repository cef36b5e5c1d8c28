"""Processes that share a job, and an output folder of theirs that is there complete or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.whole_outputs import aside_of, publish

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
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write into, renamed to it at the end and removed on failure.

    Raises:
        CheckpointError: ``target`` exists, or the disk is full.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists already: give a --save folder that does not")
    aside = aside_of(target)
    if get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    try:
        yield aside
        barrier()
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise CheckpointError(f"{target} cannot be written: {error.strerror}; make room and start again") from error
        raise
    if get_rank() == 0:
        publish(aside, target)
    barrier()


def get_rank() -> int:
    """This process among those that share the work; 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for the others, where there are any."""
    if dist.is_initialized():
        dist.barrier()
