"""Runs a stranger's template within bounds of time and memory, in this process.

A sandbox keeps a template from the machine's files, not from looping for days or from doubling a string forty times. So
while one renders, the process may take only so much more address space and processor time; what goes beyond raises an
ordinary exception there and then.
"""

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# Templates take milliseconds and kilobytes. Other threads' work counts as well, hence the room.
CPU_SECONDS = 10.0
EXTRA_BYTES = 2 << 30


class TookTooLongError(RuntimeError):
    """What runs within :func:`bounded` used up its processor time."""


@contextmanager
def bounded(cpu_seconds: float = CPU_SECONDS, extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Within it, MemoryError beyond ``extra_bytes`` more of address space, TookTooLongError beyond ``cpu_seconds``.

    Signals reach the main thread alone: in another one only the memory is bounded. Uses SIGVTALRM.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space_bytes() + extra_bytes
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        before = signal.signal(signal.SIGVTALRM, _interrupt)
        # Again and again, for an exception may be raised where Python ignores it (a garbage collector's callback).
        signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds, 0.1)
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        if in_main_thread:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise TookTooLongError("it takes too long")
