"""The table of an evaluation."""

import torch

from megatron_mixcpt.testing import run_distributed


def test_a_table_has_a_line_for_each_set_and_fits() -> None:
    run_distributed(check_table, 1, cpu_emulation=True)


def check_table() -> None:
    from megatron_mixcpt.training.engine.console import EvaluationTable

    table = EvaluationTable()
    keys = ("loss", "chosen reward", "rejected reward", "reward margin", "accuracy", "rejected log-probability")
    evaluate = table.collecting(lambda value: (dict.fromkeys(keys, torch.tensor(value)), None, False))
    evaluate(0.6931472)
    evaluate(-1234.5678)
    title, head, first, second = table.text(7, ["held-out", "law"]).splitlines()
    assert title == "validation after 7 iterations"
    assert head.split("  ")[-1] == keys[-1] and len(head) == len(first) == len(second) < 160
    assert first.split() == ["held-out", *["0.693147"] * 6] and second.split() == ["law", *["-1234.57"] * 6]
