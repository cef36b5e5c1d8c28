"""One run at a time in an output folder, and only the same one resumes it."""

from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt import __version__
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.jobs.work_folder import lock, refuse_other, start_or_resume

SETTINGS: dict[str, Any] = {"--seed": 1, "--cpt": ["a", "b"]}
INPUTS = [["cpt", "a.jsonl", 10, 0]]


def test_another_run_waits_outside(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(DataError, match="another run is writing there"), lock(tmp_path):
        pytest.fail("two runs are inside")
    with lock(tmp_path):
        pass


def test_the_same_run_resumes(tmp_path: Path) -> None:
    start_or_resume(tmp_path / "work", SETTINGS, INPUTS, tmp_path)
    (tmp_path / "work" / "part").write_text("done")
    start_or_resume(tmp_path / "work", SETTINGS, INPUTS, tmp_path)
    assert (tmp_path / "work" / "part").exists()


def test_a_folder_without_a_plan_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "part").write_text("of nobody knows what")
    start_or_resume(tmp_path / "work", SETTINGS, INPUTS, tmp_path)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {**SETTINGS, "--seed": 2}}, "--output out was made with --seed 1, now it is 2; choose another"),
        ({"settings": {**SETTINGS, "--cpt": ["a"]}}, "was made with --cpt a b, now it is a;"),
        ({"settings": {**SETTINGS, "--new": 3}}, "was made with --new its default, now it is 3"),
        ({"sources": [["cpt", "a.jsonl", 11, 0]]}, "was made from other input: a.jsonl has changed since"),
        ({"sources": []}, "was made from other input: the number of input files has changed since"),
        ({"tool version": "9"}, f"holds the work of version {__version__} of this tool, this is 9"),
    ],
)
def test_another_run_is_refused(change: dict[str, Any], message: str) -> None:
    before = {"tool version": __version__, "settings": SETTINGS, "sources": INPUTS}
    refuse_other(before, dict(before), Path("out"))
    with pytest.raises(ConfigError, match=message):
        refuse_other(before, {**before, **change}, Path("out"))
