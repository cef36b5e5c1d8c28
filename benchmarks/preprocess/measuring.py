"""Runs a command and says what it took: seconds of processor and wall, and memory, of it and its children."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """What a command took."""

    cpu: float
    """Processor seconds, of all processes."""
    wall: float
    """Seconds from start to end."""
    memory: float
    """The largest sum of proportional set sizes seen, in MiB; 0 where it was not watched."""


def measure(command: list[str], output: Path, watch_memory: bool = False) -> Measured:
    """Run a command after deleting ``output``. Exits where it fails.

    With ``watch_memory`` it takes some percent longer: the kernel holds a process up while it adds up its pages.
    """
    shutil.rmtree(output, ignore_errors=True)
    environment = os.environ | {
        "RAYON_NUM_THREADS": "1",
        "FASTOKENS_BPE_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    before, started, memory = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment) as process:
            while watch_memory and not ended(process):
                memory = max(memory, memory_of(process.pid))
        errors.seek(0)
        if process.returncode != 0:
            sys.exit(f"failed: {' '.join(command)}\n{errors.read().decode()}")
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    return Measured(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, memory)


def ended(process: subprocess.Popen) -> bool:
    """Wait for a process for as long as lies between two looks at its memory, which take a while themselves."""
    try:
        process.wait(0.25)
        return True
    except subprocess.TimeoutExpired:
        return False


def memory_of(pid: int) -> float:
    """Proportional set size in MiB of a process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        sizes = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in (pid, *children)]
    except OSError:
        return 0.0
    return sum(int(size.partition("Pss:")[2].split()[0]) for size in sizes) / 1024
