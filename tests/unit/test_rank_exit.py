"""How a failed rank ends: every way in which Python's own end would wait for ever, and what the user reads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_mixcpt.rank_exit import _remedy

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import atexit, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.rank_exit import exit_as_rank

def ignore_sigterm(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)

def start_what_does_not_end():
    ready = multiprocessing.Event()
    multiprocessing.Process(target=ignore_sigterm, args=(ready,), daemon=True).start()
    ready.wait()
    threading.Thread(target=time.sleep, args=(600,)).start()
    atexit.register(time.sleep, 600)

@exit_as_rank("use less")
def main():
    start_what_does_not_end()
    print("before", end=" ")
    {body}

main()
"""


def run(body: str, **environment: str) -> subprocess.CompletedProcess:
    """Returns when no process holds the outputs any more."""
    return subprocess.run(
        [sys.executable, "-c", HEAD.format(body=body)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("body", "code", "last"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("raise BaseException('of the engine')", 1, "BaseException: of the engine"),
        ("raise ConfigError('--alpha 2 is wrong')", 1, "error: --alpha 2 is wrong"),
        ("class OutOfMemoryError(Exception): pass\n    raise OutOfMemoryError('x')", 1, "memory is full: use less"),
        ("sys.exit(75)", 75, None),
        ("sys.exit('not like this')", 1, "not like this"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", 130, None),
    ],
)
def test_it_ends_at_once_whatever_it_has_started(body: str, code: int, last: str | None) -> None:
    done = run(body)
    assert done.returncode == code, done.stderr
    assert done.stdout == "before "
    assert done.stderr.strip().endswith(last) if last else done.stderr == ""


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_is_answered_with_one_line_and_after_tidying(rank: int, tmp_path: Path) -> None:
    """A second one, in the middle of that, changes nothing; only the first rank speaks."""
    body = f"""
    import tempfile
    from megatron_mixcpt.rank_exit import stops_at_sigterm
    with stops_at_sigterm(lambda: "nothing was written"), tempfile.TemporaryDirectory(dir="{tmp_path}"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)"""
    done = run(body, RANK=str(rank))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    said = "" if rank else "stopped by SIGTERM: nothing was written\n"
    assert done.stdout + done.stderr == f"before {said}"
    assert not list(tmp_path.iterdir())


def test_the_kernel_ends_what_hangs_while_ending() -> None:
    """Such as a file system that does not answer; the flush of a stream stands for it."""
    body = "sys.excepthook = lambda *_: (signal.alarm(1), time.sleep(600))\n    1 / 0"
    assert run(body).returncode == -signal.SIGALRM


def test_a_rank_ends_after_another_of_its_machine(tmp_path: Path) -> None:
    error_file = tmp_path / "attempt_0" / "1" / "error.json"
    error_file.parent.mkdir(parents=True)
    (tmp_path / "attempt_0" / "explained").touch()
    done = run("time.sleep(600)", TORCHELASTIC_ERROR_FILE=str(error_file))
    assert done.returncode == 1
    assert "another rank of this machine has failed" in done.stderr and "in main" in done.stderr


def test_torchruns_report_gets_the_first_error(tmp_path: Path) -> None:
    error_files = [tmp_path / "attempt_0" / str(rank) / "error.json" for rank in range(2)]
    for error_file in error_files:
        error_file.parent.mkdir(parents=True)
        done = run("1 / 0", TORCHELASTIC_ERROR_FILE=str(error_file))
        assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in error_files[0].read_text()
    assert not error_files[1].exists() and "ZeroDivisionError" not in done.stderr


def test_success_is_left_to_python() -> None:
    """With its functions at exit."""
    script = HEAD.format(body="atexit.register(print, 'at exit')").replace("    start_what_does_not_end()\n", "")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "before at exit\n")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "DataLoader worker (pid 41) is killed by signal: Killed. ",
            "a worker of the data loader (process 41) was kil",
        ),
        (
            "DataLoader worker (pid(s) 41, 42) exited unexpectedly",
            "a worker of the data loader (process 41, 42) exited",
        ),
        ("DataLoader worker (pid 41) is killed by signal: Bus error. It is", "ended by signal: Bus error"),
        ("CUDA error: out of memory\nCUDA kernel errors might be", "the GPU's memory is full: use less"),
        ("something else", None),
    ],
)
def test_what_comes_from_outside_has_its_remedy(message: str, told: str | None) -> None:
    remedy = _remedy(RuntimeError(message), "use less")
    assert remedy is None if told is None else told in str(remedy)
