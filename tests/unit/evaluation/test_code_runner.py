"""Programs that a model wrote: which ones pass, and what none of them can do."""

import os
import time

import psutil
import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation import code_runner
from megatron_mixcpt.evaluation.code_runner import Limits, passes
from megatron_mixcpt.evaluation.tasks import scoring

QUICK = Limits(seconds=2, memory_bytes=1 << 28, file_bytes=1 << 16)


@pytest.fixture(autouse=True, scope="module")
def isolation() -> None:
    try:
        code_runner.check_isolation()
    except ConfigError as error:
        pytest.skip(str(error))


def test_what_passes():
    assert passes("def add(a, b):\n    return a + b\nassert add(2, 3) == 5", QUICK)
    assert passes("with open('notes', 'w') as file:\n    file.write('x')\nassert open('notes').read() == 'x'", QUICK)


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 3",
        "def add(a, b) return",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "x = bytearray(1 << 29)",
        "open('big', 'wb').write(bytes(1 << 17))",
        "import os; open(os.path.expanduser('~/written-by-a-model'), 'w')",
        "import tempfile; tempfile.mkdtemp(dir='/tmp')",
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
    ],
)
def test_what_does_not(program):
    assert not passes(program, QUICK)


def test_no_network_no_environment_no_processes(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hidden")
    assert passes("import os; assert 'SECRET_KEY' not in os.environ and not os.listdir('/proc')", QUICK)
    assert passes("import socket; assert [name for _, name in socket.if_nameindex()] == ['lo']", QUICK)
    kill = "import os\ntry:\n    os.kill({pid}, 0)\nexcept ProcessLookupError:\n    pass\nelse:\n    raise SystemExit"
    assert passes(kill.format(pid=os.getpid()), QUICK)


def test_what_a_program_started_ends_with_it(tmp_path):
    """Also where it left the process group and nobody waits for it."""
    mark = f"sleeping-{os.getpid()}-{time.monotonic_ns()}"
    daemon = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60) # {mark}'],"
    assert passes(f"{daemon} start_new_session=True)", QUICK)
    assert not passes(f"{daemon} start_new_session=True)\nwhile True: pass", QUICK)
    commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    assert not [command for command in commands if mark in " ".join(command)]


def test_a_jail_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(code_runner, "GRACE_SECONDS", -1.5)
    started = time.monotonic()
    assert not passes("while True: pass", QUICK)
    assert time.monotonic() - started < 1.9


def test_without_namespaces_it_is_refused(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    jail.write_text("import sys; print('Operation not permitted', file=sys.stderr); sys.exit(125)")
    monkeypatch.setattr(code_runner.code_jail, "__file__", str(jail))
    with pytest.raises(ConfigError, match=r"create namespaces \(Operation not permitted\); allow unprivileged"):
        code_runner.check_isolation()


HUMANEVAL = {
    "prompt": "def twice(x):\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4",
    "entry_point": "twice",
}


@pytest.mark.parametrize(("completion", "expected"), [("    return 2 * x", 1.0), ("    return x", 0.0)])
def test_completed_functions_and_programs_are_scored(completion, expected):
    assert scoring.humaneval(HUMANEVAL, [completion]) == {"pass@1": expected}
    doc = {"test_list": ["assert twice(2) == 4", "assert twice(0) == 0"]}
    assert scoring.mbpp(doc, [f"def twice(x):\n{completion}"]) == {"pass@1": expected}


@pytest.mark.parametrize(
    ("answer", "solution", "expected"),
    [("1051", "so 1,051.", 1.0), ("51.0", "76 - 25 = 51", 1.0), ("-3", "1 - 4 = -3", 1.0), ("5", "5 or 6", 0.0)],
)
def test_the_last_number_is_the_answer(answer, solution, expected):
    assert scoring.last_number({"Answer": answer}, [solution]) == {"exact_match": expected}
    assert scoring.last_number({"Answer": answer}, ["none"]) == {"exact_match": 0.0}
