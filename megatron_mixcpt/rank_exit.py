"""How a process ends that shares its work with others: with everything that it started, and if it fails, at once.

Python's own way out may take for ever after an error. It asks the workers of a data loader to end with SIGTERM, which
they ignore as the rank does, and waits for them; it destroys process groups whose other ranks are gone; it waits for
threads. As long as one process of a failed run is there, torchrun neither reports the failure nor starts the run again.
"""

import contextlib
import ctypes
import faulthandler
import functools
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from megatron_mixcpt.errors import MixCPTError, report_user_error, wait_for_the_first_rank, with_rank
from megatron_mixcpt.terminal import say
from megatron_mixcpt.torchrun_report import another_rank_has_spoken, explained, say_to_torchrun, speaks_for_the_machine

# Between the error's arrival here and the kernel's SIGALRM: of the 10 seconds that a failed rank may take.
_MOST_S = 9
# What a rank gets to fail on its own after another of its machine has: one that waits for that on the device cannot.
_GRACE_S = 3.0
_POLL_S = 0.5
_INTERRUPTED = 128 + signal.SIGINT


def exit_as_rank(out_of_memory: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Wrap the ``main`` of a program that torchrun runs on many ranks: see the module's text.

    A :class:`MixCPTError` is one line, as with ``errors.exit_on_user_error``. Anything else has its traceback, with a
    line below it where the cause and the remedy are known; of the ranks of a machine, the first to fail prints.

    Args:
        out_of_memory: what to try where the device's memory is full.
    """

    def decorate(main: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(main)
        def wrapped(*positional, **named) -> None:
            die_with_the_launcher()
            try:
                with _ends_after_a_peer():
                    main(*positional, **named)
            except SystemExit as exit:
                if exit.code:
                    _leave(_exit_code(exit))
                raise
            except KeyboardInterrupt:
                _leave(_INTERRUPTED)
            except BaseException as error:  # the engine's CheckpointException is no Exception
                _let_the_kernel_end_this()
                _report(error, out_of_memory)
                _leave(1)

        return wrapped

    return decorate


def fail_from_a_thread(error: MixCPTError) -> NoReturn:
    """End this rank from another thread than the main one, which may wait for what does not come."""
    line = f"error: {with_rank(error)}"
    if speaks_for_the_machine():
        say(line)
        explained(line)
    else:
        explained()
    _leave(1)


_last_acts: list[Callable[[], None]] = []


@contextlib.contextmanager
def at_the_end(act: Callable[[], None]) -> Iterator[None]:
    """Have ``act`` called where this process ends inside without the interpreter's shutdown; it must be quick."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


class _Stopped(SystemExit):
    """A signal has asked for the end."""


@contextlib.contextmanager
def stops_at_sigterm(outcome: Callable[[], str]) -> Iterator[None]:
    """Answer SIGTERM inside as an error is: once the running operation has returned, and with all that tidies up.

    The default would leave temporary folders behind. The process ends with the code that the default has, and the first
    rank says what ``outcome`` returns.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the tidying
        raise _Stopped(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Stopped:
        line = f"stopped by SIGTERM: {outcome()}"
        if os.environ.get("RANK", "0") == "0":
            say(line)
        explained(line)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


_ended: set[int] = set()


def ended_here(pid: int) -> bool:
    """Whether :func:`end_child_processes` has killed this process."""
    return pid in _ended


def end_child_processes() -> None:
    """Kill the processes that were started with :mod:`multiprocessing`; none of them has work that is still wanted.

    What was started as a command ends when the pipe from this process does.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    # The handler of PyTorch's data loader would raise for each worker.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
    children = multiprocessing.active_children()
    _ended.update(child.pid for child in children if child.pid)
    for child in children:
        child.kill()
    for child in children:
        child.join(1.0)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


@functools.cache
def die_with_the_launcher() -> None:
    """Let the kernel end this process when torchrun is killed, and the processes that it forks when it is.

    A rank that went on would hold its device, and write into the checkpoints of the training that is started again.
    """
    if sys.platform == "linux":
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _set_death_signal()
        os.register_at_fork(after_in_child=_set_death_signal)


# Looked up here: a forked process may hang in the loader.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _set_death_signal() -> None:
    pr_set_pdeathsig = 1
    assert _prctl is not None
    _prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextlib.contextmanager
def _ends_after_a_peer() -> Iterator[None]:
    """End this process if it goes on inside while another rank of this machine has failed."""
    over = threading.Event()
    threading.Thread(target=_wait_for_a_failure, args=(over,), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _wait_for_a_failure(over: threading.Event) -> None:
    while not another_rank_has_spoken():
        if over.wait(_POLL_S):
            return
    if not over.wait(_GRACE_S):
        print("another rank of this machine has failed; this one was here:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        explained()
        _leave(1)


def _report(error: BaseException, out_of_memory: str) -> None:
    if getattr(error, "failures", None) == {}:
        wait_for_the_first_rank()  # the engine's CheckpointException: the first rank's has the reason
    if isinstance(error, MixCPTError):
        report_user_error(error)
    elif not speaks_for_the_machine():
        explained()  # it mostly fails because another has
    else:
        sys.excepthook(type(error), error, error.__traceback__)
        if remedy := _remedy(error, out_of_memory):
            line = f"error: {with_rank(remedy)}"
            print(line, file=sys.stderr, flush=True)
            explained(line)
        else:
            say_to_torchrun(f"{type(error).__name__}: {error}")


def _remedy(error: BaseException, out_of_memory: str) -> str | None:
    """What to do about an error that comes from outside the program, in one line."""
    message = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA error: out of memory" in message:
        needed = re.search(r"Tried to allocate ([\d.]+ \w+)", message)
        return f"the GPU's memory is full{f' ({needed[1]} more were needed)' if needed else ''}: {out_of_memory}"
    worker = re.search(
        r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by (signal: [\w ]+)|exited)", message
    )
    if worker:
        how = {None: "exited", "signal: Killed": "was killed"}.get(worker[2], f"was ended by {worker[2]}")
        return (
            f"a worker of the data loader (process {worker[1]}) {how}, as the kernel does where the host's memory or "
            "/dev/shm is full: use fewer --num-workers, or give the job more host memory"
        )
    return None


def _exit_code(exit: SystemExit) -> int:
    if isinstance(exit.code, int):
        return exit.code
    print(exit.code, file=sys.stderr, flush=True)
    return 1


def _let_the_kernel_end_this() -> None:
    """Whatever hangs from here on, such as a file system: SIGALRM's default needs nothing of this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_MOST_S)


def _leave(code: int) -> NoReturn:
    """End this process without the interpreter's shutdown."""
    with contextlib.suppress(Exception):
        end_child_processes()
    for act in _last_acts:
        with contextlib.suppress(Exception):
            act()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        logging.shutdown()
    os._exit(code)
