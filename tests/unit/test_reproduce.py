"""What the experiments of ``examples/reproduce`` report of their runs: worked out by hand on figures made up here."""

import json
from pathlib import Path

import pytest

from examples.reproduce import cycle, real
from examples.reproduce.losses_table import compared, difference, table
from examples.reproduce.second_stage import own_pool, split

TEXTS = ("French", "English", "Spanish", "code", "English prose")


def evaluation(output: Path, name: str, *bits: float) -> None:
    """The part of an evaluation that is read: bits per byte by text."""
    folder = output / "evaluations" / name
    folder.mkdir(parents=True)
    perplexity = {text: {"bits_per_byte": each} for text, each in zip(TEXTS, bits, strict=True)}
    (folder / "results.json").write_text(json.dumps({"perplexity": perplexity}), encoding="utf-8")


def run(output: Path, name: str, steps: int, *bits: float) -> None:
    """A run and its evaluation."""
    evaluation(output, name, *bits)
    folder = output / "runs" / name
    folder.mkdir(parents=True)
    (folder / "training.log").write_text("tokens per second: 512.0 \n" * steps, encoding="utf-8")
    (folder / "measured.json").write_text('{"wall_s": 3.0}', encoding="utf-8")


def test_frontier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation(tmp_path, "base", 2.0, 1.0, 1.0, 1.0, 1.0)
    run(tmp_path, "none/seed-1", 4, 1.8, 1.0, 1.1, 1.0, 1.0)  # 10% gain; -10% of one of four texts
    run(tmp_path, "lssd-0.8/seed-1", 4, 1.9, 1.0, 0.9, 1.0, 1.0)  # 5%, 2.5%
    run(tmp_path, "kd-0.8/seed-1", 4, 1.9, 1.0, 1.0, 0.98, 1.0)  # 5%, 0.5%
    run(tmp_path, "kd-0.2/seed-1", 4, 1.99, 1.0, 1.0, 1.0, 1.0)  # 0.5%: lssd does not go as far
    run(tmp_path, "lora-8/seed-1", 4, 1.9, 1.0, 1.0, 1.0, 1.0)
    run(tmp_path, "kd-forward-0.8/seed-1", 4, 1.9, 1.0, 1.0, 1.0, 1.0)
    real.report(tmp_path)
    found = json.loads((tmp_path / "frontier.json").read_text(encoding="utf-8"))
    cells = {(each["method"], each["alpha"]): (each["gain"], each["change"]) for each in found["cells"]}
    assert cells[("none", 1.0)] == pytest.approx((10.0, -2.5))
    assert cells[("lssd", 0.8)] == pytest.approx((5.0, 2.5))
    assert {("lora-8", None), ("kd-forward", 0.8)} < set(cells)
    # Both curves end in the same point at 10%; at 5% they are 2 apart; in the mean of the line 1.
    number = found["kept_at_equal_gain"][0]
    assert (number["method"], number["other"], number["mean"]) == ("lssd", "kd", pytest.approx(1.0))
    # kd 0.8 beside none: 5 - 10 and 0.5 - -2.5; lssd 0.8 beside kd 0.8; lora-8, which has no alpha, beside none alone.
    printed = capsys.readouterr().out
    assert "| `kd`, 0.8 | `none` | -5.00 | -5.00 | +3.00 | +3.00 |" in printed
    assert "| `lssd`, 0.8 | `kd` | +0.00 | +0.00 | +2.00 | +2.00 |" in printed
    assert "| `lora-8` | `none` | -5.00 | -5.00 | +2.50 | +2.50 |" in printed and "| `lora-8` | `kd`" not in printed
    assert "lssd minus kd at equal gain: +1.00 points (seed 1: +1.00)" in printed
    assert "NaN" not in (tmp_path / "frontier.json").read_text(encoding="utf-8")
    assert found["runs"]["none/seed-1"]["median_step_s"] == 2.0
    assert (tmp_path / "frontier.png").stat().st_size > 0


def test_runs_of_two_lengths_are_not_compared(tmp_path: Path) -> None:
    evaluation(tmp_path, "base", *[1.0] * 5)
    run(tmp_path, "none/seed-1", 4, *[1.0] * 5)
    run(tmp_path, "kd-0.8/seed-1", 5, *[1.0] * 5)
    with pytest.raises(SystemExit, match=r"runs of \[4, 5\] steps"):
        real.report(tmp_path)


def test_cycle_table(tmp_path: Path) -> None:
    evaluation(tmp_path, "base", *[1.0] * 5)
    evaluation(tmp_path, "lssd-0.8/seed-1", 0.8, *[1.0] * 4)
    evaluation(tmp_path, "cycle-kept/seed-1/code", 0.9, 1.0, 1.0, 0.5, 1.1)
    lines = cycle.table(cycle.kept(tmp_path)).splitlines()[2:]
    assert lines == [
        "| `kept` | 1 | french | 20.0 | 0.0 | 0.0 | 0.0 | 0.0 | 4.0 |",
        "| `kept` | 1 | code | 10.0 | 0.0 | 0.0 | 50.0 | -10.0 | 10.0 |",
    ]


def test_difference_by_seed_and_by_sample() -> None:
    one = {1: {"a": 1.0, "b": 3.0}, 2: {"a": 2.0, "b": 2.0}, 3: {"a": 0.0, "b": 0.0}}
    two = {1: {"b": 2.0, "a": 2.0}, 2: {"b": 2.0, "a": 5.0}}
    # Seed 1: -1 and 1; seed 2: -3 and 0. By seed 0 and -1.5, by sample -2 and 0.5; seed 3 has no partner.
    found = difference(one, two)
    assert (found["mean"], found["by_seed"], found["lower"]) == (-0.75, {1: 0.0, 2: -1.5}, 0.5)
    # The standard error of two numbers is half their distance; Student's t with one degree of freedom is 12.706.
    assert (found["seed_margin"], found["sample_margin"]) == pytest.approx((0.75 * 12.706, 1.25 * 12.706))


def scores(path: Path, losses: list[float]) -> None:
    """Scores of held-out instructions."""
    path.parent.mkdir(parents=True)
    lines = [
        {"id": str(i), "kind": "sft", "loss_given_query": loss, "num_response_tokens": 10 + i}
        for i, loss in enumerate(losses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_second_stage_table(tmp_path: Path) -> None:
    scores(tmp_path / "before-lssd-0.8" / "heldout.jsonl", [2.0, 4.0])
    for seed in (1, 2):
        scores(tmp_path / f"seed-{seed}" / "low" / "heldout.jsonl", [1.0, 3.0])
        scores(tmp_path / f"seed-{seed}" / "high" / "heldout.jsonl", [1.5, 3.5])
    found = compared(tmp_path, "lssd-0.8")
    assert (found["before"], found["after"]["low"], found["changes"]["high"]["mean"]) == (3.0, {1: 2.0, 2: 2.0}, -0.5)
    assert compared(tmp_path, "lssd-0.8", over=10)["before"] == 4.0
    assert "| low - high | -0.5000, -0.5000 | -0.5000 | 0.0000 | 0.0000 | 100% |" in table(found)


def test_pools_are_disjoint_and_their_own(tmp_path: Path) -> None:
    lines = [json.dumps({"kind": "sft", "number": number}) + "\n" for number in range(10)]
    split(list(lines), tmp_path / "samples", "sft", 4, 6)
    heldout, pool = ((tmp_path / "samples" / f"{part}.sft.jsonl").read_text() for part in ("heldout", "pool"))
    assert sorted((heldout + pool).splitlines(keepends=True)) == sorted(lines)
    (tmp_path / "scores.jsonl").write_text(pool, encoding="utf-8")
    for seed in (1, 2):
        own_pool(tmp_path, ["sft"], seed, 3)
    assert "".join((tmp_path / f"seed-{seed}" / "scores.jsonl").read_text() for seed in (1, 2)) == pool
    with pytest.raises(SystemExit, match="no sft samples for seed 3"):
        own_pool(tmp_path, ["sft"], 3, 3)
    with pytest.raises(SystemExit, match="has 10 records"):
        split(list(lines), tmp_path / "samples", "sft", 5, 6)
