"""Work done by several processes of this machine, which end with the process that started them, however it ends::

with Workers(8, Encoder, folder) as workers:  # each process makes its own Encoder(folder), once
    pending = [workers.submit("encode", part) for part in parts]
    results = [call.result() for call in pending]
"""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Protocol

from megatron_mixcpt.errors import DataError

_worker: "_Lazy"
"""Of this process, where it is one of a pool's."""


class Pending(Protocol):
    """A call that was submitted."""

    def result(self) -> Any:
        """Wait for the call to end and return what it returned, or raise what it raised."""


class Workers:
    """A pool of processes that hold a worker each. A context manager; leaving it cancels what has not begun.

    The processes are forked when the first call is submitted, so that modules are loaded once; submit it before any
    library has started threads of its own. With ``num_workers`` 1 there are no processes: the worker is made, and each
    call is run, in this one, when its result is asked for.

    Args:
        num_workers: how many processes.
        make_worker: called with ``arguments`` once in each process, before its first call; may be a class. Neither
            need be picklable; the arguments and results of calls must be.
    """

    def __init__(self, num_workers: int, make_worker: Callable[..., Any], *arguments: Any) -> None:
        self._worker = _Lazy(make_worker, arguments)
        self._pool: ProcessPoolExecutor | None = None
        self._life_line: list[int] = []
        if num_workers > 1:
            self._life_line = [*os.pipe()]
            read_end, write_end = self._life_line
            fork = get_context("fork")
            self._pool = ProcessPoolExecutor(num_workers, fork, _start_process, (read_end, write_end, self._worker))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for end in self._life_line:  # once no process listens any more: each would end at once
            os.close(end)

    def _end_processes(self) -> None:
        """After one was killed: the pool asks the others with SIGTERM, which they answer as this process did, or not.

        It then waits for them for ever, and so would leaving the context manager.
        """
        for end in self._life_line[1:]:
            os.close(end)
        del self._life_line[1:]

    def submit(self, method: str, *arguments: Any) -> Pending:
        """Have a worker's ``method`` called. Its result raises DataError where the process was killed."""
        if self._pool is None:
            return _Postponed(self._worker, method, arguments)
        return _Submitted(self._pool.submit(_call, method, arguments), self._end_processes)


class _Lazy:
    """Makes a worker when it is first called, so that an error in that is the error of a call."""

    def __init__(self, make_worker: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._make_worker = make_worker
        self._arguments = arguments
        self._made: Any = None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make_worker(*self._arguments)
        return self._made


class _Submitted:
    def __init__(self, future: Future, end_processes: Callable[[], None]) -> None:
        self._future = future
        self._end_processes = end_processes

    def result(self) -> Any:
        try:
            return self._future.result()
        except BrokenProcessPool as error:
            self._end_processes()
            raise DataError("a worker was killed, perhaps for want of memory; try fewer --workers") from error


class _Postponed:
    def __init__(self, worker: _Lazy, method: str, arguments: tuple[Any, ...]) -> None:
        self._call = worker, method, arguments

    def result(self) -> Any:
        worker, method, arguments = self._call
        return getattr(worker(), method)(*arguments)


def _start_process(read_end: int, write_end: int, worker: _Lazy) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(write_end)
    threading.Thread(target=_end_with_parent, args=(read_end,), daemon=True).start()
    _worker = worker


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_worker(), method)(*arguments)


def _end_with_parent(read_end: int) -> None:
    """Wait until no process holds the pipe's other end, which is when the parent is gone, then stop at once."""
    os.read(read_end, 1)
    os._exit(1)
