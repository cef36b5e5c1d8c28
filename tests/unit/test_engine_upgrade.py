"""The report about the suite on another engine: failed tests, and the register's names that are others there."""

import json
from pathlib import Path

import pytest

from tests.engine_upgrade.report import report

RESULTS = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" tests="5" failures="1" errors="1" skipped="1" time="61.4">
<testcase classname="tests.a" name="test_good"/>
<testcase classname="tests.a" name="test_also_good"/>
<testcase classname="tests.a" name="test_left"><skipped message="no GPU"/></testcase>
<testcase classname="tests.a" name="test_bad"><failure message="AssertionError: 3 is not 4&#10;assert 3 == 4">...</failure></testcase>
<testcase classname="tests.b" name="test_broken"><error message="ImportError: gone">...</error></testcase>
</testsuite></testsuites>
"""  # noqa: E501
TRAIN, EVALUATE = "megatron.training.training.train", "megatron.training.training.evaluate"
LOG = "megatron.training.training.training_log"


def entries(version: str, **of: tuple[str, str]) -> str:
    names = {"train": TRAIN, "evaluate": EVALUATE, "log": LOG}
    found = {names[key]: {"signature": signature, "source": text} for key, (signature, text) in of.items()}
    return json.dumps({"version": version, "entries": found})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tests.xml").write_text(RESULTS)
    before = entries("0.19.2", train=("(a)", "x"), evaluate=("(a)", "x"), log=("(a)", "x"))
    (tmp_path / "entries-pinned.json").write_text(before)
    (tmp_path / "entries.json").write_text(
        entries("0.20.0", train=("(a, b)", "y"), evaluate=("(a)", "y"), log=("(a)", "x"))
    )
    return tmp_path


def test_report_counts_names_failures_and_what_the_engine_changed(folder: Path) -> None:
    lines = report(folder).splitlines()
    assert lines[0] == "# The suite on megatron-core 0.20.0 (pinned: 0.19.2)"
    assert "2 passed, 2 failed, 1 skipped, in 61 s." in lines
    assert "- `tests.a::test_bad`: AssertionError: 3 is not 4" in lines
    assert "- `tests.b::test_broken`: ImportError: gone" in lines
    assert "Of 3 names in the register of engine changes, 1 are the same text." in lines
    assert any(line.startswith(f"- `{TRAIN}`: signature `(a)` is now `(a, b)`; look at ") for line in lines)
    assert any(line.startswith(f"- `{EVALUATE}`: same signature, another text; look at ") for line in lines)
    assert LOG not in report(folder)


def test_a_run_without_results_is_said(folder: Path) -> None:
    (folder / "tests.xml").unlink()
    with pytest.raises(SystemExit, match="tests.xml is missing: pytest ended before it wrote its results"):
        report(folder)
