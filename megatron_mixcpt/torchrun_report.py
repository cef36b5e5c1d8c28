"""Keeps a user's error the last line on the screen: torchrun adds its report only where a rank has said nothing.

When a rank fails, torchrun logs it, raises ``ChildFailedError`` and prints its own traceback and a report of forty
lines, below the line that tells the user what to correct. A rank that has explained its end calls :func:`explained`.
Where this package is installed, torchrun loads :func:`register` (the entry point group ``torchrun.handlers``, in
pyproject.toml) and then leaves its report out for such ranks. For any other failure torchrun prints what it always
prints. Exit codes do not change. Where torchrun may start a run again, it is also told to do so without the addresses
of the run before.
"""

import atexit
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

# Names a file, the same for all ranks of one torchrun, that lists the processes which have explained their end.
_VARIABLE = "MIXCPT_EXPLAINED_ENDS"
# Names the file of an attempt's rank in which torchrun looks for the reason of a failure.
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_RESTARTS = {"--max-restarts", "--max_restarts"}
# Without it, a run that torchrun has started again meets in the store of the run before: a rank that comes first reads
# the address that another one had there, and fails (torch 2.14).
_NEW_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_LOGGERS = (
    "torch.distributed.elastic.multiprocessing.api",
    "torch.distributed.elastic.multiprocessing.errors.error_handler",
)


def speaks_for_the_machine() -> bool:
    """Whether no other rank of this machine has spoken in this attempt of torchrun; afterwards one has."""
    if _ERROR_FILE not in os.environ:
        return True
    try:
        _spoken().touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def another_rank_has_spoken() -> bool:
    """Whether a rank of this machine has explained its end: other ranks mostly fail because it has left."""
    return _ERROR_FILE in os.environ and _spoken().exists()


def _spoken() -> Path:
    """Lies in the folder of the attempt, which holds a folder for each rank of this machine."""
    return Path(os.environ[_ERROR_FILE]).parent.parent / "explained"


def explained(message: str | None = None) -> None:
    """Tell torchrun that this process has told the user why it ends.

    Args:
        message: repeated in the report of a torchrun that does not know this module.
    """
    if (listed := os.environ.get(_VARIABLE)) and Path(listed).parent.is_dir():
        with open(listed, "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    if message:
        say_to_torchrun(message)


def say_to_torchrun(message: str) -> None:
    """Give torchrun's report the reason why this process fails."""
    if error_file := os.environ.get(_ERROR_FILE):
        # The earliest is the report's root cause; in whole seconds, ranks that fail because of this one are as early.
        extra = {"py_callstack": message, "timestamp": str(int(time.time()) - 1)}
        Path(error_file).write_text(json.dumps({"message": {"message": message, "extraInfo": extra}}), encoding="utf-8")


def register() -> Callable[[Any], Any]:
    """Called by torchrun as it starts: see the module's text. No rendezvous is added, though torchrun asks for one."""
    if _is_torchrun() and _VARIABLE not in os.environ:
        listed = Path(tempfile.mkdtemp(prefix="torchrun_report_")) / "explained"
        os.environ[_VARIABLE] = str(listed)
        atexit.register(_remove, listed, os.getpid())
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_is_news)
        sys.excepthook = _reporting_what_is_not_explained(sys.excepthook)
        if _RESTARTS & {word.split("=")[0] for word in sys.argv} or "PET_MAX_RESTARTS" in os.environ:
            os.environ.setdefault(_NEW_STORES, "1")
    return _no_rendezvous


def _is_torchrun() -> bool:
    return any(word == "torch.distributed.run" or Path(word).name == "torchrun" for word in sys.orig_argv[:4])


def _no_rendezvous(parameters: Any) -> Any:
    raise ValueError("mixcpt-report is not a rendezvous backend: it shortens the reports of torchrun")


def _remove(listed: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a process that torchrun has forked
        listed.unlink(missing_ok=True)
        listed.parent.rmdir()


def _explained_processes() -> set[int]:
    listed = Path(os.environ[_VARIABLE])
    return {int(line) for line in listed.read_text().split()} if listed.exists() else set()


def _is_news(record: logging.LogRecord) -> bool:
    """False for what torchrun logs about the end of ranks that have explained it."""
    known = _explained_processes()
    message = record.getMessage()
    if failed := re.search(r"failed \(exitcode: .*\(pid: (\d+)\)", message):
        return int(failed[1]) not in known
    return not (known and ("closing signal" in message or "no error file defined for parent" in message))


def _reporting_what_is_not_explained(report: Callable) -> Callable:
    def excepthook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        known = _explained_processes()
        if kind.__name__ == "ChildFailedError" and error.get_first_failure()[1].pid in known:  # type: ignore[attr-defined] # torch's
            return
        if kind.__name__ == "SignalException" and known:
            print(f"torchrun: ended by {error.sigval.name}", file=sys.stderr)  # type: ignore[attr-defined] # torch's
            return
        report(kind, error, traceback)

    return excepthook
