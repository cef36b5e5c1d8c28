"""The command line of ``tools/select_alignment.py``."""

from megatron_mixcpt.selection.select_tool import main
from tests.unit.selection.scores import save


def test_the_command(lines, tmp_path, capsys):
    scores = save(tmp_path / "scores.jsonl", lines)
    flags = ["--kind", "sft", "--strategy", "half", "--top-k", "9", "--output", str(tmp_path / "out.jsonl")]
    main(["--scores", str(scores), *flags])
    printed = capsys.readouterr().out
    assert "out.jsonl: 9 samples; left out: 51 not_selected" in printed
    assert f"picture: {tmp_path / 'out.jsonl.png'}" in printed
