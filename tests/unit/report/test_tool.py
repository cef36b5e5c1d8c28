"""The command line of ``tools/report.py``."""

from pathlib import Path

import pytest

from megatron_mixcpt.report.tool import main
from tests.unit.report.tiny_experiment import BASE, write_results


def test_the_tool_ends_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["--output", str(tmp_path / "report")])
    error = capsys.readouterr().err
    assert error.startswith("error: nothing to report on") and error.count("\n") == 1


def test_the_tool_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "evaluations" / "base", BASE)
    (tmp_path / "scores.jsonl").write_text("not json\n", encoding="utf-8")
    main([str(tmp_path), "--output", str(tmp_path / "report")])
    printed = capsys.readouterr().out
    assert printed.startswith("0 run(s), 1 evaluation(s), 0 picture(s)\n")
    assert "Left out: " in printed and f"page: {tmp_path / 'report' / 'report.html'}\n" in printed
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["report.html"]
