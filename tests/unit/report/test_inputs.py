"""Files become the inputs of a report."""

from pathlib import Path

from megatron_mixcpt.report.inputs import method_of, read_fas
from tests.unit.report.tiny_experiment import write_scores


def test_seeds_are_one_method() -> None:
    names = ["mixcpt/seed-1", "mixcpt-seed2", "mixcpt_seed_3", "mixcpt seed 4", "mixcpt"]
    assert {method_of(name) for name in names} == {"mixcpt"}
    assert method_of("seed-1") == "seed-1" and method_of("alpha-0.5") == "alpha-0.5"


def test_scores_file(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.jsonl")
    found = read_fas("scores", tmp_path / "scores.jsonl").fas
    assert {kind: len(scores) for kind, scores in found.items()} == {"sft": 200, "dpo": 60}
