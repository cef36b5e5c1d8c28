"""Run a function on several ranks of a real process group, for tests.

``run_distributed`` starts one process per rank on this machine, joins them through a temporary file (so no port can
collide with another test's), calls the function on every rank and raises the first failing rank's traceback in the
caller. Ranks use one thread each: tests run several of them on few cores.
"""

import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ["torch", "torch.distributed.tensor", "torch.distributed.checkpoint", "triton"]
"""Modules that ranks are born with. A suite may add a module of its own before its first call."""


class RankFailedError(RuntimeError):
    """A rank of ``run_distributed`` raised, died or did not finish in time."""


def run_distributed(
    func: Callable[..., None],
    world_size: int,
    *args: Any,
    backend: str = "gloo",
    timeout_s: float = 120.0,
    cpu_emulation: bool = False,
) -> None:
    """Call ``func(*args)`` on ``world_size`` ranks with the default process group initialised.

    ``func`` must be a top-level function of an importable module and ``args`` picklable.
    ``torch.distributed.get_rank()`` tells a rank which one it is. With ``cpu_emulation``,
    ``megatron_mixcpt.cpu_emulation.install()`` runs before ``func``'s module is imported, so that the
    module may import Megatron at its top on a machine without a GPU.

    Raises:
        RankFailedError: with the traceback of the rank that failed first, or after ``timeout_s`` seconds the numbers of
            the ranks that had not finished. No rank outlives the call.
    """
    context = _start_context()
    with tempfile.TemporaryDirectory(prefix="run_distributed_") as folder:
        call = (func.__module__, func.__qualname__, args)
        setup = (world_size, backend, timeout_s, cpu_emulation)
        ranks = [
            context.Process(target=_run_rank, args=(rank, call, setup, folder, dict(os.environ)), daemon=False)
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        try:
            _join(ranks, Path(folder), timeout_s)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()


def _start_context() -> multiprocessing.context.ForkServerContext:
    """A server process that has imported ``PRELOADED``, from which each rank is forked: saves seconds a rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _join(ranks: list, folder: Path, timeout_s: float) -> None:
    """Wait for every rank; stop at the first failure (its peers may wait for it for ever) or at the time limit."""
    deadline = time.monotonic() + timeout_s
    pending = {process.sentinel: rank for rank, process in enumerate(ranks)}
    while pending:
        finished = wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not finished:
            raise RankFailedError(f"ranks {sorted(pending.values())} had not finished after {timeout_s} s")
        for sentinel in finished:
            rank = pending.pop(sentinel)
            ranks[rank].join()
            if ranks[rank].exitcode != 0:
                raise RankFailedError(_first_failure(folder, f"rank {rank} exited with code {ranks[rank].exitcode}"))


def _first_failure(folder: Path, otherwise: str) -> str:
    """The earliest traceback written: a failing rank writes its own before its peers can notice its absence."""
    reports = sorted(folder.glob("*.failed"), key=lambda path: path.stat().st_mtime_ns)
    return reports[0].read_text() if reports else otherwise


def _run_rank(rank: int, call: tuple, setup: tuple, folder: str, environment: dict[str, str]) -> None:
    """Body of one rank's process: join the group, call the function, report a failure in a file."""
    module_name, function_name, args = call
    world_size, backend, timeout_s, cpu_emulation = setup
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    try:
        if cpu_emulation:
            importlib.import_module("megatron_mixcpt.cpu_emulation").install()
        func = getattr(importlib.import_module(module_name), function_name)
        dist.init_process_group(
            backend,
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        func(*args)
        dist.barrier()
    except BaseException:
        report = f"rank {rank} of {world_size} in {module_name}.{function_name}:\n{traceback.format_exc()}"
        # Renamed into place, so that the parent never reads half of it.
        Path(folder, f"{rank}.report").write_text(report)
        Path(folder, f"{rank}.report").rename(Path(folder, f"{rank}.failed"))
        # Not through the interpreter's shutdown: a process group with work under way can hang there.
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()
