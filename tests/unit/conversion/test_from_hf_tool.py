"""``tools/convert_from_hf.py`` as a function: flags, what it prints, and one line for what cannot be converted."""

from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.from_hf_tool import main
from tests.unit.conversion import tiny_hf


def test_what_was_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_hf.save("llama", tmp_path / "hf", torch.bfloat16)
    main(["--hf-model", str(tmp_path / "hf"), "--save", str(tmp_path / "megatron")])
    assert capsys.readouterr().out == f"{tmp_path / 'megatron'}: 27 tensors, 0.00 GB\n"
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text() == "release"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--hf-model", "nowhere", "--save", "out"],
            "error: nowhere is not a folder: give a Hugging Face",
        ),
        (["--hf-model", "nowhere"], "error: the following arguments are required: --save"),
    ],
)
def test_an_error_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
