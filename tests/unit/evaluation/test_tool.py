"""The command line of ``tools/evaluate.py``: what it lists, and how it ends on a wrong one."""

import pytest

from megatron_mixcpt.errors import exit_on_user_error
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
