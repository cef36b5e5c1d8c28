"""The writer of asynchronous checkpoints and what it forks; in test_failed_rank.py whole runs lose it or its rank."""

import multiprocessing
import os
import time
from pathlib import Path

from megatron.core.dist_checkpointing.strategies.async_utils import PersistentAsyncCaller

from megatron_mixcpt.training.engine.async_writer import write_until_told_to_stop

FORK = multiprocessing.get_context("fork")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def rank(pids: Path) -> None:
    FORK.Process(target=writer, args=(pids,)).start()
    time.sleep(60)


def writer(pids: Path) -> None:
    PersistentAsyncCaller.async_loop = staticmethod(fork_a_worker)
    write_until_told_to_stop(pids)


def fork_a_worker(pids: Path) -> None:
    """What the engine does for each file of a checkpoint."""
    if worker := os.fork():
        pids.with_name("new").write_text(f"{os.getpid()} {worker}")
        pids.with_name("new").rename(pids)
    time.sleep(60)
    os._exit(0)


def test_what_the_writer_has_forked_ends_with_the_rank(tmp_path: Path) -> None:
    process = FORK.Process(target=rank, args=(tmp_path / "pids",))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "pids").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert all(map(is_running, pids))
    process.kill()
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_running, pids))
