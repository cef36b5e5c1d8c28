"""A trial tells a fault that is noticed from one that is not, and from tests that cannot be run."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutation.fault_list import Fault
from tests.mutation.results import table
from tests.mutation.run import failing_without, try_fault
from tests.mutation.trial import KILLED, SURVIVED, Outcome

TESTS = """
from megatron_mixcpt.sums import add

def test_add():
    assert add(2, 1) == 3

def test_of_nothing():
    pass

def test_that_fails():
    assert add(2, 1) == 4
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {"megatron_mixcpt/__init__.py": "", "tests/test_sums.py": TESTS}
    files["megatron_mixcpt/sums.py"] = "def add(a, b):\n    return a + b\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def fault(test: str) -> Fault:
    return Fault(1, "the sign", "megatron_mixcpt/sums.py", "a + b", "a - b", (f"tests/test_sums.py::{test}",))


def test_outcomes(tree: Path) -> None:
    killed = try_fault(tree, fault("test_add"))
    assert (killed.status, killed.by) == (KILLED, "tests/test_sums.py::test_add")
    assert try_fault(tree, fault("test_of_nothing")).status == SURVIVED
    assert try_fault(tree, fault("test_that_is_not_there")).status == "pytest ended with code 4"
    assert "a + b" in (tree / "megatron_mixcpt/sums.py").read_text(), "the fault is taken out again"


def test_a_test_that_fails_without_the_fault_kills_nothing(tree: Path) -> None:
    outcomes = [Outcome(KILLED, f"tests/test_sums.py::{name}", 1.0) for name in ("test_add", "test_that_fails")]
    assert failing_without(tree, outcomes) == {"tests/test_sums.py::test_that_fails"}


def test_the_table_says_what_was_not_run() -> None:
    tried, untried = (
        replace(fault(test), file="megatron_mixcpt/errors.py") for test in ("test_add", "test_of_nothing")
    )
    outcome = Outcome(KILLED, "tests/test_sums.py::test_add", 1.5)._asdict() | {"date": "2026-11-01", "commit": "1"}
    page = table([tried, untried], {tried.digest: outcome})
    assert "2 faults: 1 killed, 0 survived, 1 not run." in page
    assert (
        "| the sign | killed | `tests/test_sums.py::test_add` | 1.5 |" in page and "| the sign | not run | | |" in page
    )
