"""What people read while a program runs, wherever everything else that the process prints goes.

By default both are the process's standard output. A trainer sends its output to a log of its rank
(``training/engine/rank_logs.py``); :func:`say` then writes to the terminal and to that log.
"""

import sys
from typing import TextIO

_terminal: TextIO | None = None


def say(text: str) -> None:
    """Show ``text`` on the terminal, and keep it in this rank's log if there is one."""
    if _terminal is not None:
        print(text, file=_terminal, flush=True)
    print(text, file=sys.stdout, flush=True)


def set_terminal(stream: TextIO | None) -> None:
    """Take ``stream`` for the terminal; None: standard output is the terminal."""
    global _terminal
    _terminal = stream


def stream() -> TextIO:
    """Where a bar that moves is drawn: the terminal where one is set, else standard error."""
    return _terminal or sys.stderr


def is_apart() -> bool:
    """Whether the terminal is another stream than standard output."""
    return _terminal is not None
