"""Time and peak memory of a call in this process (Linux with glibc)."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Measured(NamedTuple):
    """Wall and processor seconds of a call, and how far the process's peak rose above what it held before, in bytes."""

    wall_s: float
    cpu_s: float
    bytes: int


def measure(call: Callable[[], object], barrier: Callable[[], object] = lambda: None) -> Measured:
    """Run ``call`` once, timed between two calls of ``barrier`` (for several ranks: until the last is done)."""
    held = _reset_peak()
    barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    cpu = time.process_time() - cpu
    barrier()
    return Measured(time.perf_counter() - wall, cpu, peak_memory() - held)


def _reset_peak() -> int:
    """Forget the peak so far and return what the process holds now, in bytes."""
    # Freed memory that the allocator keeps would hide what the call takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """The largest resident memory of this process, since ``measure`` last began if it did, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
