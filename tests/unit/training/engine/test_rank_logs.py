"""Where a process's output goes: the rank's file, the terminal, or both; run in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import os, sys, warnings
from megatron_mixcpt.errors import ConfigError, exit_on_user_error
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.rank_logs import keep_rank_log, rank_log

def noise(word):
    print(word, "of Python")
    warnings.warn(word + " of a library")
    os.write(2, (word + " of C++\\n").encode())
    os.system("echo " + word + " of a child process")
    say(word + " for people")
"""


def run(tmp_path: Path, body: str) -> subprocess.CompletedProcess:
    script = tmp_path / "script.py"
    script.write_text(START + body)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    return subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )


def kept(verbose: bool) -> str:
    return f"""
with rank_log():
    noise("early")
    keep_rank_log("save", 3, verbose={verbose})
    noise("late")
print("afterwards")
"""


def test_everything_is_in_the_log_and_the_terminal_shows_what_is_for_people(tmp_path: Path) -> None:
    for _ in range(2):
        done = run(tmp_path, kept(verbose=False))
        assert done.stdout == "early for people\nlate for people\nafterwards\n" and done.stderr == ""
    log = (tmp_path / "save/logs/rank-00003.log").read_text()
    assert log.count("===== run started ") == 2, "a second run is appended"
    for word in ("early", "late"):
        for source in ("Python", "a library", "C++", "a child process"):
            assert log.count(f"{word} of {source}\n") == 2, (word, source)
        assert log.count(f"{word} for people\n") == 2
    assert "afterwards" not in log


def test_verbose_shows_everything_and_logs_it(tmp_path: Path) -> None:
    done = run(tmp_path, kept(verbose=True))
    log = (tmp_path / "save/logs/rank-00003.log").read_text()
    for source in ("of Python", "of a library", "of C++", "of a child process", "for people"):
        assert f"late {source}\n" in done.stdout and f"late {source}\n" in log
    assert done.stdout.count("late for people\n") == 1


def test_a_crash_loses_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
with rank_log():
    keep_rank_log("save", 0, verbose=False)
    print("last words")
    os.abort()
""",
    )
    log = (tmp_path / "save/logs/rank-00000.log").read_text()
    assert done.returncode == -6
    assert "last words\n" in log and "Fatal Python error: Aborted" in log


def test_a_bug_has_its_traceback_in_both_places(tmp_path: Path) -> None:
    done = run(tmp_path, 'with rank_log():\n    keep_rank_log("save", 0, verbose=False)\n    1 / 0\n')
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "ZeroDivisionError: division by zero" in (tmp_path / "save/logs/rank-00000.log").read_text()


@pytest.mark.parametrize("early", [True, False])
def test_a_users_error_is_one_line(tmp_path: Path, early: bool) -> None:
    keep = "" if early else 'keep_rank_log("save", 0, verbose=False)'
    done = run(
        tmp_path,
        f"""
@exit_on_user_error
def main():
    with rank_log():
        print("noise")
        {keep}
        raise ConfigError("--alpha 2 is outside [0, 1]")

main()
""",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --alpha 2 is outside [0, 1]\n"
    assert early or "ConfigError: --alpha 2" in (tmp_path / "save/logs/rank-00000.log").read_text()


def test_help_is_shown_though_there_is_no_log_yet(tmp_path: Path) -> None:
    done = run(tmp_path, 'with rank_log():\n    print("usage: ...")\n    sys.exit(0)\n')
    assert (done.returncode, done.stdout) == (0, "usage: ...\n")


def test_a_folder_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "save").write_text("a file")
    done = run(
        tmp_path,
        """
@exit_on_user_error
def main():
    with rank_log():
        keep_rank_log("save", 0, verbose=False)

main()
""",
    )
    assert done.returncode == 1 and done.stderr.startswith("error: --save save cannot be written (")


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path) -> None:
    body = """
@exit_on_user_error
def main():
    with rank_log():
        keep_rank_log("save", 0, verbose=False)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, 1)
        os.dup2(full, 2)
        raise ConfigError("--x is wrong")

main()
"""
    done = run(tmp_path, body)
    assert done.returncode == 1 and "error: --x is wrong" in done.stderr.splitlines()
