"""Each rank's log: everything that the process prints, from Python, from C++ and from its child processes.

Both standard streams are taken at the level of file descriptors, and written without a buffer of this process, so that
a crash loses nothing. What is meant for people is shown on the terminal with ``terminal.say``.
"""

import contextlib
import faulthandler
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from megatron_mixcpt.errors import ConfigError, MixCPTError
from megatron_mixcpt.terminal import set_terminal

_STREAMS = (1, 2)
FOLDER = "logs"


class RankLog:
    """Takes what this process prints until it is closed: first held back, then kept where :meth:`keep` says."""

    def __init__(self) -> None:
        self._terminal = [os.dup(stream) for stream in _STREAMS]
        self._held = tempfile.TemporaryFile()
        self._shown = os.fdopen(os.dup(self._terminal[0]), "w", encoding="utf-8", errors="replace")
        self._tee: subprocess.Popen | None = None
        self.kept = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True)
        self._point_at(self._held.fileno())
        set_terminal(self._shown)

    def keep(self, folder: Path | None, rank: int, *, verbose: bool) -> None:
        """From now on, and with what was held back, write to the rank's file.

        Args:
            folder: of the rank files, created where missing; None: everything is discarded.
            rank: of this process.
            verbose: show everything on the terminal, too.
        """
        path = Path(os.devnull) if folder is None else folder / f"rank-{rank:05d}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            if folder is not None:
                file.write(f"===== run started {datetime.now():%Y-%m-%d %H:%M:%S}, process {os.getpid()}\n".encode())
                file.flush()
            if verbose:
                set_terminal(None)  # the tee shows it
                self._tee = subprocess.Popen(
                    ["tee", "-a", path], stdin=subprocess.PIPE, stdout=self._terminal[0], start_new_session=True
                )
                assert self._tee.stdin is not None
                self._point_at(self._tee.stdin.fileno())
            else:
                self._point_at(file.fileno())
        self._replay(_STREAMS[0])
        self.kept = True

    def close(self, *, replay: bool) -> None:
        """Give both streams back to the terminal; with ``replay`` show there what is still held back."""
        _flush()
        for stream, terminal in zip(_STREAMS, self._terminal, strict=True):
            os.dup2(terminal, stream)
            os.close(terminal)
        set_terminal(None)
        self._shown.close()
        if replay and not self.kept:
            self._replay(_STREAMS[0])
        self._held.close()
        if self._tee is not None and self._tee.stdin is not None:
            self._tee.stdin.close()
            # A process that a rank has left behind may hold the other end: what it prints still arrives.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._tee.wait(timeout=5.0)

    def _point_at(self, target: int) -> None:
        _flush()
        for stream in _STREAMS:
            os.dup2(target, stream)

    def _replay(self, stream: int) -> None:
        self._held.seek(0)
        with os.fdopen(os.dup(stream), "wb") as output:
            shutil.copyfileobj(self._held, output)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log's disk may be full: the terminal is still to be given back
            stream.flush()


_current: RankLog | None = None


@contextlib.contextmanager
def rank_log() -> Iterator[None]:
    """Hold back what is printed inside, and keep it in the rank's log from :func:`keep_rank_log` on.

    The traceback of an exception is the last thing in the log. What was printed before there was a log is shown on the
    terminal where something other than a user's error ends the program, such as ``--help``.
    """
    global _current
    log = _current = RankLog()
    replay = True
    try:
        with _stacks_of_crashes():
            yield
    except SystemExit:
        raise
    except BaseException as error:  # the engine's CheckpointException is no Exception
        replay = not isinstance(error, MixCPTError)
        if log.kept:
            with contextlib.suppress(OSError):  # the log's disk may be what is full
                traceback.print_exc()
        raise
    else:
        replay = False
    finally:
        _current = None
        log.close(replay=replay)


@contextlib.contextmanager
def _stacks_of_crashes() -> Iterator[None]:
    """Have a crash in native code leave the Python stacks of all threads in the log."""
    was_on = faulthandler.is_enabled()
    faulthandler.enable(file=_STREAMS[1])
    yield
    if not was_on:
        faulthandler.disable()


def keep_rank_log(save: str | None, rank: int, *, verbose: bool) -> None:
    """Inside :func:`rank_log`: keep this rank's log in ``save``/logs; without ``save`` it is discarded.

    Raises:
        ConfigError: the folder cannot be written.
    """
    if _current is None:
        return
    try:
        _current.keep(Path(save) / FOLDER if save else None, rank, verbose=verbose)
    except OSError as error:
        raise ConfigError(f"--save {save} cannot be written ({error}): give a folder that can") from error
