"""The engine's process that writes asynchronous checkpoints: it ends with its rank, and its rank ends when it dies.

The engine starts it as a new interpreter, waits for its reports without asking whether it is still there, and expects
it to survive the signals that torchrun sends to everything that a rank has started.
"""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from typing import Any

from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.rank_exit import die_with_the_launcher, ended_here, fail_from_a_thread
from megatron_mixcpt.training.engine.patches import Change
from megatron_mixcpt.training.engine.preemption import SIGNALS


def bound_writer() -> list[Change]:
    """Changes to the engine that bind the writer to its rank and the rank to its writer."""
    return [
        Change(
            "megatron.core.dist_checkpointing.strategies.async_utils.PersistentAsyncCaller.async_loop",
            __name__,
            lambda _: write_until_told_to_stop,
        ),
        Change(
            "megatron.core.dist_checkpointing.strategies.async_utils.PersistentAsyncCaller._get_process",
            __name__,
            _watched,
        ),
    ]


def write_until_told_to_stop(*positional: Any, **named: Any) -> None:
    """The writer's program, in its process, where the engine is as its wheel has it. What it forks ends with it."""
    die_with_the_launcher()
    threading.Thread(target=_end_with_the_rank, daemon=True).start()
    PersistentAsyncCaller.async_loop(*positional, **named)


def _end_with_the_rank() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def _watched(get_process: Callable) -> Callable:
    """The engine's function that starts the writer, once, and returns it."""
    watched: set[int] = set()

    @functools.wraps(get_process)
    def start(rank: int, mp_mode: str = "spawn", *rest: Any, **named: Any) -> Any:
        resource_tracker.ensure_running()  # which would be started below otherwise, and then let the signals through
        # Its rank, which gets the signals too, has a last checkpoint for it: a new process inherits what is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            # Not from a server, which would have to survive the signals as well.
            writer = get_process(rank, "spawn", *rest, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if writer.pid not in watched:
            watched.add(writer.pid)
            threading.Thread(target=_fail_with, args=(writer,), daemon=True).start()
        return writer

    return start


def _fail_with(writer: Any) -> None:
    """Wait for the writer's end; other than one that the rank has asked for, it ends the rank."""
    wait([writer.sentinel])
    writer.join()
    if (code := writer.exitcode) and not ended_here(writer.pid):
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"failed (exit code {code})"
        fail_from_a_thread(
            CheckpointError(
                f"the process that writes asynchronous checkpoints {how}; its traceback, if it has one, is "
                "in the rank's log; where the kernel has killed it, give the job more host memory, or save without "
                "--async-save"
            )
        )
