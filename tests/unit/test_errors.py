"""What a user reads of an error is one line, whatever the names in it hold."""

import pytest

from megatron_mixcpt.errors import CheckpointError, ConfigError, DataError, NumbersError, exit_on_user_error


@pytest.mark.parametrize("kind", (ConfigError, DataError, CheckpointError, NumbersError))
@pytest.mark.parametrize("line_end", ("\n", "\r\n", "\r", "\u2028", "\x0b"))
def test_an_error_is_one_line(kind: type[Exception], line_end: str) -> None:
    assert str(kind(f"--cpt a{line_end}b.jsonl: does not exist")) == "--cpt a b.jsonl: does not exist"


def test_a_tool_ends_with_that_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise DataError("x\ny.jsonl:3: is empty")

    with pytest.raises(SystemExit) as ended:
        exit_on_user_error(main)()
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == ["error: x y.jsonl:3: is empty"]
