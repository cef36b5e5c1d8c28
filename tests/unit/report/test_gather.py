"""What is missing is said, bad input refused in one line."""

from pathlib import Path

import pytest

from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.report.gather import gather
from tests.unit.report.read_page import make_page, settings
from tests.unit.report.tiny_experiment import BASE, write_log, write_results


def test_missing_parts_are_said(tmp_path: Path) -> None:
    write_log(tmp_path / "run" / "tensorboard", "mixcpt", 1)
    page = make_page(tmp_path, "--run", f"mixcpt={tmp_path / 'run'}")
    assert "Evaluations: none" in page.text and "Data: no mixture" in page.text
    assert "Format alignment scores: none" in page.text and "Training curves" not in page.text
    assert "Domain: learned? mixcpt: +10.00 % of the teacher's loss." in page.text


def test_without_base_and_domain_scores_are_shown_as_they_are(tmp_path: Path) -> None:
    write_results(tmp_path / "a", BASE)
    page = make_page(tmp_path, "--evaluation", f"a={tmp_path / 'a'}")
    assert "(--base NAME)" in page.text and "--domain; there are: English, French, gsm8k" in page.text
    assert page.tables["Texts, in bits per byte"][-1] == ["a", "1.2500", "0.8000", "1.0250"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to report on"),
        (["{folder}/nowhere"], "no such folder"),
        (["{folder}/empty"], "no training log, results.json"),
        (["--run", "x"], "--run x: expected NAME=PATH"),
        (["--run", "x={folder}/empty"], "no TensorBoard log"),
        (["--evaluation", "x={folder}/nowhere"], "No such file"),
        (["--evaluation", "x={folder}/bad.json"], "bad.json: not in the form that tools/evaluate.py writes"),
        (["--scores", "x={folder}/bad.jsonl"], "bad.jsonl:2: not a line of tools/score_alignment.py"),
        (["--evaluation", "x={folder}/good", "x={folder}/good"], "x is already"),
        (
            ["--evaluation", "x={folder}/good", "--domain", "Klingon"],
            "--domain Klingon: no such text.* English, French",
        ),
        (["--evaluation", "x={folder}/good", "--base", "y"], "--base y: no such evaluation; there are: x"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"perplexity": 3}', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"kind": "sft", "fas": 1.0}\n{"kind": "sft"}\n', encoding="utf-8")
    write_results(tmp_path / "good", BASE)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        gather(settings(*(flag.format(folder=tmp_path) for flag in flags), "--output", "out"))
    assert "\n" not in str(caught.value)
