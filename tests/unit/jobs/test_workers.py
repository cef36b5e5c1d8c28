"""Calls run in processes of their own, with their own worker; errors and a killed process reach whoever asks."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.workers import Workers


class Counter:
    """Counts the calls of its process."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ConfigError("start is negative")
        self._number = start

    def count(self, step: int) -> tuple[int, int]:
        """The process and its count."""
        self._number += step
        return os.getpid(), self._number

    def die(self) -> None:
        """End the process as the kernel does when memory is short."""
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_each_process_has_one_worker(num_workers: int) -> None:
    """Every process counts its own calls from 10 on, whatever their order."""
    with Workers(num_workers, Counter, 10) as workers:
        results = [call.result() for call in [workers.submit("count", 1) for _ in range(6)]]
    by_process: dict[int, list[int]] = {}
    for process, number in results:
        by_process.setdefault(process, []).append(number)
    assert (os.getpid() in by_process) == (num_workers == 1)
    for numbers in by_process.values():
        assert sorted(numbers) == list(range(11, 11 + len(numbers)))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_making_a_worker_raises_is_raised_by_the_call(num_workers: int) -> None:
    """A user's mistake stays one line, in a process as here."""
    with Workers(num_workers, Counter, -1) as workers, pytest.raises(ConfigError, match="start is negative"):
        workers.submit("count", 1).result()


def test_a_killed_process_is_one_line() -> None:
    """Out of memory, for example."""
    with Workers(2, Counter, 0) as workers, pytest.raises(DataError, match="a worker was killed"):
        workers.submit("die").result()


def test_a_killed_process_is_one_line_where_signals_are_answered_otherwise() -> None:
    """As in a training, which answers SIGTERM itself while samples are encoded: the other process must end."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        test_a_killed_process_is_one_line()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """A process that sleeps for an hour is gone soon after its parent was killed, which could not say goodbye."""
    script = """
        import os, sys, time
        from pathlib import Path
        from megatron_mixcpt.jobs.workers import Workers
        class Sleeper:
            def sleep(self):
                Path(sys.argv[1]).write_text(str(os.getpid()))
                time.sleep(3600)
        with Workers(2, Sleeper) as workers:
            workers.submit("sleep").result()
    """
    told = tmp_path / "process"
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), str(told)])
    while not (told.exists() and told.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    status = Path(f"/proc/{told.read_text()}/status")
    while status.exists() and "State:\tZ" not in status.read_text():
        time.sleep(0.02)
