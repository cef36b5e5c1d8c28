"""The command line of ``tools/evaluate.py``: what it lists, and how it ends on a wrong one."""

import os
import signal
from pathlib import Path

import pytest

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.evaluation import tool
from megatron_mixcpt.evaluation.tool import build_parser, main


def test_the_suites_are_listed(capsys):
    with pytest.raises(SystemExit, match="0"):
        build_parser().parse_args(["--list-suites"])
    assert "HumanEval; needs --run-generated-code\n" in capsys.readouterr().out


def test_a_wrong_command_line_is_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit, match="1"):
        exit_on_user_error(main.__wrapped__)(
            ["--hf-model", str(tmp_path), "--output", str(tmp_path), "--perplexity", "a=x"]
        )
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output {tmp_path} already exists") and error.count("\n") == 1


@pytest.mark.parametrize(("written", "said"), [(True, "out is complete"), (False, "nothing was written to --output")])
def test_sigterm_says_what_there_is(
    written: bool, said: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def evaluate(settings: object) -> None:
        (tmp_path / "out").mkdir() if written else None
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(tool, "evaluate", evaluate)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        main.__wrapped__(["--hf-model", str(tmp_path), "--output", str(tmp_path / "out"), "--perplexity", "a=x"])
    (line,) = "".join(capsys.readouterr()).splitlines()
    assert line.startswith("stopped by SIGTERM: ") and said in line
    assert signal.getsignal(signal.SIGTERM) is before
