"""Two ways to start a training on two ranks that a drill can kill: torchrun, as users do, and forked ranks.

Forked ranks come from a server that has imported the engine once: a training then starts in a second or two, and many
kills fit into little time. What ends them when one of them dies is what torchrun does: SIGTERM, and SIGKILL later.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUM_RANKS = 2
_GRACE_S = 30.0  # as torchrun's
# One thread a rank: two ranks with a thread pool each would wait for one another.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


class Torchrun:
    """``torchrun --standalone --nproc-per-node 2 tools/TOOL.py ARGV``, its output in ``log``."""

    def __init__(self, tool: str, argv: list[str], log: Path, environment: dict[str, str]) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS)]
        command = [*launcher, str(ROOT / "tools" / f"{tool}.py"), *argv]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT | environment
            )

    def ranks(self) -> list[int]:
        """Process ids, the first rank's first."""
        return children(self._process.pid)

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals, victim: str) -> None:
        """Send a signal to ``rank 0``, ``rank 1``, the ``launcher`` or ``everything``."""
        ranks = self.ranks()
        chosen = {"launcher": [self._process.pid], "everything": [self._process.pid, *ranks]}.get(victim)
        send(number, chosen or [ranks[int(victim[-1])]])

    def end(self, ranks: list[int]) -> None:
        """Wait until it and these ranks are gone; exits where a rank continues without it."""
        self._process.wait()
        wait_until_gone(ranks)


class Forked:
    """The tool's ``main(ARGV)`` on ranks forked from a server; there is no launcher to be killed but this process."""

    def __init__(self, tool: str, argv: list[str], log: Path, environment: dict[str, str]) -> None:
        os.environ.update(ENVIRONMENT)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.preloaded"])
        log.write_bytes(b"")
        world = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "localhost", "MASTER_PORT": free_port()} | environment
        self._ranks = [
            context.Process(target=_run_rank, args=(rank, tool, argv, str(log), world)) for rank in range(NUM_RANKS)
        ]
        for rank in self._ranks:
            rank.start()

    def ranks(self) -> list[int]:
        """Process ids, the first rank's first."""
        return [rank.pid for rank in self._ranks]

    def poll(self) -> int | None:
        """The first exit code that is not 0, or 0; None while a rank runs and none has failed."""
        codes = [rank.exitcode for rank in self._ranks]
        failed = next((code for code in codes if code), 0)
        return failed if failed or None not in codes else None

    def send(self, number: signal.Signals, victim: str) -> None:
        """Send a signal to ``rank 0``, ``rank 1``, or both (``everything``)."""
        send(number, self.ranks() if victim == "everything" else [self.ranks()[int(victim[-1])]])

    def end(self, ranks: list[int]) -> None:
        """Wait until these ranks are gone, and end them as torchrun would where one has died."""
        while self.poll() is None:
            time.sleep(0.02)
        send(signal.SIGTERM, [rank.pid for rank in self._ranks if rank.is_alive()])
        deadline = time.monotonic() + _GRACE_S
        for rank in self._ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
            rank.kill()
            rank.join()


def _run_rank(rank: int, tool: str, argv: list[str], log: str, world: dict[str, str]) -> None:
    os.environ.update(world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        from tests.faults import faulty  # whose top level installs the emulation, here and in what this process starts

        sys.modules["__main__"] = faulty
        faulty.run(tool, argv)
        code = 0
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        traceback.print_exc()
    finally:  # not through the interpreter's shutdown, where a forked process can wait for threads that it lacks
        sys.stdout.flush()
        os._exit(code or 0)


def free_port() -> str:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started, the oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def send(number: signal.Signals, pids: list[int]) -> None:
    """Send a signal to those of ``pids`` that are there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def wait_until_gone(pids: list[int], timeout_s: float = 60.0) -> None:
    """Exits where a process outlives its torchrun: it would write into the next one's checkpoints."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            send(signal.SIGKILL, left)
            sys.exit(f"ranks {left} went on for {timeout_s:g} s after torchrun had ended")
        time.sleep(0.05)
