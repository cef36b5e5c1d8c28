"""What the engine's checkpointing lacks: incomplete iterations are passed over, complete ones kept, ``--keep-last N``.

The engine resumes from whatever the tracker file names, overwrites an iteration that exists already, and keeps every
iteration, or those of ``--save-retain-interval``. Here its save function is wrapped.
"""

import argparse
import errno
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.training import get_args
from torch.distributed.checkpoint.api import CheckpointException

from megatron_mixcpt.conversion.megatron_for_engine import open_for_engine
from megatron_mixcpt.conversion.megatron_iterations import (
    choose_checkpoint,
    iteration_folder,
    iteration_folders,
    iteration_number,
    tracked_iteration,
    why_incomplete,
    write_tracker,
)
from megatron_mixcpt.conversion.megatron_layout import TRACKER_NAME
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.whole_outputs import flush, flush_all
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.patches import Change
from megatron_mixcpt.training.one_run import check_still_held

_REMOVED = ".removed-"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO}
_TRIED_BYTES = 16 << 20


def resumable(folder: str | None, iteration: int | None = None) -> MegatronCheckpoint | None:
    """The checkpoint of ``folder`` that the engine will load, opened and checked; None where there is none.

    Args:
        folder: of checkpoints; None: none.
        iteration: the one that ``--ckpt-step`` names; None: the last complete one up to the tracker file's.

    Raises:
        CheckpointError: the iteration is incomplete, or every one is, or loading it would run code that it names.
    """
    if not folder or not Path(folder).is_dir():
        return None
    if iteration:
        named = iteration_folder(Path(folder), iteration)
        if reason := why_incomplete(named):
            raise CheckpointError(f"--ckpt-step {iteration}: {named} is incomplete ({reason}); give another iteration")
        return open_for_engine(folder, iteration)
    choice = choose_checkpoint(Path(folder))
    return choice and open_for_engine(folder, iteration_number(choice.folder) or None)


def settle_checkpoints(args: argparse.Namespace) -> None:
    """Let the tracker file of ``--load`` name a complete iteration, and clear what killed runs left. On one process.

    Where it names an incomplete iteration, it is **rewritten** to name the last complete one.

    Raises:
        CheckpointError: no complete iteration is left.
    """
    for left in Path(args.save).glob(f"{_REMOVED}*") if args.save else ():
        shutil.rmtree(left, ignore_errors=True)
    if not args.load or args.ckpt_step or not Path(args.load).is_dir():
        return
    if (choice := choose_checkpoint(Path(args.load))) and choice.passed_over:
        say(f"warning: {choice.passed_over}")
        write_tracker(Path(args.load), choice.folder)


def guarded_saves(keep_last: int | None) -> list[Change]:
    """Changes to the engine's saving: see :func:`_guarded`; with ``keep_last`` older iterations are deleted."""
    guarded = functools.partial(_guarded, keep_last=keep_last)
    settling = functools.partial(_settling_afterwards, keep_last=keep_last)
    return [
        Change("megatron.training.training.save_checkpoint", __name__, guarded),
        Change("megatron.training.training.maybe_finalize_async_save", __name__, _explained),
        Change("megatron.training.checkpointing.schedule_async_save", __name__, settling),
    ]


def _guarded(save_checkpoint: Callable, keep_last: int | None) -> Callable:
    """The engine's ``save_checkpoint``; it keeps the iteration just loaded and removes a stale one before it writes."""
    explained_save = _explained(save_checkpoint)

    @functools.wraps(save_checkpoint)
    def save(iteration: int, *rest: Any, **options: Any) -> None:
        args = get_args()
        folder = iteration_folder(Path(args.save), iteration)
        if iteration == args.iteration and args.load and iteration_folder(Path(args.load), iteration) == folder:
            return  # nothing was learned since it was loaded
        check_still_held()
        if args.rank == 0 and folder.exists():
            _remove(folder)  # cut off, or of a run that was abandoned: its files and the new ones would mix
        dist.barrier()
        explained_save(iteration, *rest, **options)
        if args.rank == 0 and not args.async_save:
            _settle_saved(Path(args.save), keep_last)

    return save


def _settling_afterwards(schedule: Callable, keep_last: int | None) -> Callable:
    """The engine's start of an asynchronous save: before its index is written, the folder must still be this run's."""

    @functools.wraps(schedule)
    def scheduled(request: Any) -> None:
        args = get_args()
        if args.rank == 0:
            request.finalize_fns.insert(0, check_still_held)
            request.add_finalize_fn(functools.partial(_settle_saved, Path(args.save), keep_last))
        schedule(request)

    return scheduled


def _settle_saved(save_dir: Path, keep_last: int | None) -> None:
    """Wait until the iteration just saved is on the disk, with its name; only then delete older ones.

    The engine flushes the tensors and their index, but neither ``metadata.json`` nor the tracker file nor any folder:
    a power failure would lose them, with ``--keep-last 1`` after the iteration before was deleted.
    """
    newest = tracked_iteration(save_dir)
    if newest is not None and newest.is_dir():
        flush_all(newest)
        flush(save_dir / TRACKER_NAME)
        flush(save_dir)
    if keep_last:
        prune(save_dir, keep_last)


def prune(save_dir: Path, keep_last: int) -> None:
    """Delete, in the background, what is older than the last ``keep_last`` complete iterations up to the tracker's."""
    newest = tracked_iteration(save_dir)
    if newest is None:
        return
    num_kept = 0
    for folder in iteration_folders(save_dir):
        if iteration_number(folder) > iteration_number(newest):
            continue  # of a run that was abandoned: not this run's to delete
        if num_kept >= keep_last:
            _remove(folder)
        elif why_incomplete(folder) is None:
            num_kept += 1


def _remove(folder: Path) -> None:
    """Rename at once, so that neither a kill nor a power failure leaves a part of it under its name; then delete.

    In the background.
    """
    aside = folder.with_name(_REMOVED + folder.name)
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    flush(aside.parent)
    threading.Thread(target=shutil.rmtree, args=(aside,), kwargs={"ignore_errors": True}).start()


def _explained(function: Callable) -> Callable:
    """``function``, which saves; a full disk or a missing permission is explained in one line."""

    @functools.wraps(function)
    def explained(*positional: Any, **named: Any) -> Any:
        try:
            return function(*positional, **named)
        except (Exception, CheckpointException) as error:  # which derives from BaseException
            save = Path(get_args().save)
            reason = _disk_error(error) or _refusal(save)
            if not reason:
                raise
            complete = choose_checkpoint(save)
            back = f"{complete.folder.name} is complete" if complete else "no checkpoint is there yet"
            raise CheckpointError(
                f"a checkpoint cannot be written to --save {save} ({shutil.disk_usage(save).free / 2**30:.1f} GiB "
                f"free): {reason}; {back}: make room and start the same command again"
            ) from error

    return explained


def _disk_error(error: BaseException | None) -> OSError | None:
    """The error of the disk behind an exception, on this rank or, on the first, on any."""
    if error is None or (isinstance(error, OSError) and error.errno in _DISK_ERRORS):
        return error
    failures = [failure for failure, _ in error.failures.values()] if isinstance(error, CheckpointException) else []
    return next(filter(None, map(_disk_error, [error.__cause__, *failures])), None)


def _refusal(folder: Path) -> OSError | None:
    """The disk's error when ``folder`` is written to once more: the engine's writers hand on no exception of the disk.

    They turn it into text that says no more than its type. What filled the disk, a part of the checkpoint, still does.
    """
    if not folder.is_dir():
        return None
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None
