"""A folder is searched: what lies there is named after its place, what is damaged is left out with its reason."""

from pathlib import Path

from megatron_mixcpt.report.inputs import Inputs
from megatron_mixcpt.report.search import search
from tests.unit.report.tiny_experiment import BASE, write_log, write_results


def test_what_is_found_is_named_after_its_place(tmp_path: Path) -> None:
    write_results(tmp_path / "evaluations" / "mixcpt" / "seed-1", BASE)
    write_log(tmp_path / "runs" / "mixcpt" / "seed-1" / "tensorboard", "mixcpt", 1)
    (tmp_path / "scores.rejects.jsonl").write_text("not read\n", encoding="utf-8")
    inputs = Inputs()
    assert search(tmp_path, inputs) == []
    assert [run.name for run in inputs.runs] == [item.name for item in inputs.evaluations] == ["mixcpt/seed-1"]
    (problem, _) = search(tmp_path, inputs)
    assert problem.endswith("seed-1/tensorboard: mixcpt/seed-1 exists already; name each with a flag")


def test_what_is_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    write_results(tmp_path / "evaluations" / "base", BASE)
    (tmp_path / "scores.jsonl").write_text("not json\n", encoding="utf-8")
    inputs = Inputs()
    (problem,) = search(tmp_path, inputs)
    assert "scores.jsonl:1: not a line of tools/score_alignment.py" in problem
    assert [evaluation.name for evaluation in inputs.evaluations] == ["base"]


def test_symbolic_links_are_followed_once(tmp_path: Path) -> None:
    """Results that lie on another disk are found; a link back up ends, and one beside the folder adds nothing."""
    write_results(tmp_path / "disk" / "mixcpt", BASE)
    searched = tmp_path / "searched"
    write_results(searched / "evaluations" / "base", BASE)
    (searched / "elsewhere").symlink_to(tmp_path / "disk")
    (searched / "again").symlink_to(searched / "evaluations")
    (searched / "evaluations" / "up").symlink_to(searched)
    (searched / "broken").symlink_to(tmp_path / "nothing")
    inputs = Inputs()
    assert search(searched, inputs) == []
    assert [item.name for item in inputs.evaluations] == ["elsewhere/mixcpt", "base"]
