"""Tries a planted fault: in a copy of the tree, with its tests, in a process of its own.

Each trial is forked from a process that has imported torch, transformers and pytest, and nothing of this tree: a start
of Python that imports them takes longer than most of the tests.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

LIMIT_S = 900
"""After this a fault counts as noticed: something waits for ever."""
KILLED, SURVIVED = "killed", "survived"


class Outcome(NamedTuple):
    """What became of a fault."""

    status: str
    """``killed``, ``survived``, or why nothing is known."""
    by: str
    """The first test that failed."""
    seconds: float


class _FirstFailure:
    """A plugin of pytest that remembers which test failed first."""

    def __init__(self) -> None:
        self.test = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.test = self.test or report.nodeid


@contextlib.contextmanager
def copy_of_tree(root: Path) -> Iterator[Path]:
    """A copy of what git knows or does not ignore, below a folder that is removed in the end."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        for name in listed.stdout.decode().split("\0"):
            if name and (root / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, Path(folder) / name)
        yield Path(folder)


def preload() -> None:
    """What every trial would import; nothing of this tree, which is not the same in each."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import pytest  # noqa: F401
    import torch.distributed.checkpoint  # noqa: F401
    import torch.distributed.tensor  # noqa: F401
    import transformers  # noqa: F401


def run_tests(tree: Path, tests: Sequence[str], limit_s: float = LIMIT_S) -> Outcome:
    """Run tests in a tree until the first fails. It and all that it started have ended on return."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    start_s = time.monotonic()
    process = context.Process(target=_run, args=(tree, tests, sender))
    process.start()
    assert process.pid is not None
    sender.close()
    try:
        code, test = receiver.recv() if receiver.poll(limit_s) else (1, f"nothing within {limit_s:.0f} s")
        process.join(10)
    except EOFError:
        code, test = -1, ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its group: see _run
        process.join()
    status = {0: SURVIVED, 1: KILLED}.get(
        code, "pytest ended " + (f"with code {code}" if code >= 0 else "without a result")
    )
    return Outcome(status, test, round(time.monotonic() - start_s, 1))


def _run(tree: Path, tests: Sequence[str], sender) -> None:
    """In the forked process: its own group, the copy as its tree, and silent."""
    import pytest

    os.setsid()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1), os.dup2(silence, 2)
    os.chdir(tree)
    os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "megatron_mixcpt")]:
        del sys.modules[name]
    import megatron_mixcpt

    assert Path(megatron_mixcpt.__file__).is_relative_to(tree), f"{megatron_mixcpt.__file__} is not the copy"
    first = _FirstFailure()
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={tree}", f"--basetemp={tree}/.tests"]
    sender.send((int(pytest.main([*options, *tests], plugins=[first])), first.test))
    sender.close()
    os._exit(0)
