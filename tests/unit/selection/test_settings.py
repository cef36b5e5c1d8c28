"""Settings of scoring and selection: what flags make, what tells one run from another, what is refused."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import field_docstrings, settings_from
from megatron_mixcpt.selection import score_tool, select_tool
from megatron_mixcpt.selection.settings import ScoreSettings, SelectSettings
from megatron_mixcpt.selection.strategies import STRATEGIES

MODEL = ["--hf-model", "model", "--output", "scores.jsonl"]


def score_settings(*flags: str) -> ScoreSettings:
    return score_tool.settings_of(score_tool.build_parser().parse_args(flags))


def test_the_record_of_a_scoring_run_is_of_what_decides() -> None:
    """Ranks, model and output do not tell runs apart here: the model's files have entries of their own."""
    reading = ["--on-bad-record", "skip", "--max-rejects", "1%"]  # decides whether a run ends, not what parts hold
    data = [*reading, "--sft", "a", "b", "--sft-filter", "n > 1", "--sft-prompt-field", "q"]
    record = score_settings(*MODEL, "--tensor-model-parallel-size", "2", *data).described()
    rules = record.pop("template rules")
    assert "chatml" in rules and isinstance(rules["chatml"], str)
    assert record == {
        "--sft": ["a", "b"],
        "--dpo": [],
        "--chat-template": None,
        "--seq-length": 2048,
        "--dtype": "bfloat16",
        "--batch-tokens": 4096,
        "--sft-filter": "n > 1",
        "--sft-prompt-field": "q",
    }


def test_templates_that_stay_and_rules_that_are_added(tmp_path: Path) -> None:
    rule = {"name": "ours", "about": "x", "marker": "<ours>", "turn": "<ours>(?P<content>.*)"}
    (tmp_path / "rules.json").write_text(json.dumps([rule]))
    made = score_settings(*MODEL, "--dpo", "x", "--template-rules", str(tmp_path / "rules.json"))
    assert made.described()["template rules"]["ours"] == rule["turn"]
    assert score_settings(*MODEL, "--dpo", "x", "--keep-templates").reading.rules == ()
    with pytest.raises(ConfigError, match="--keep-templates nothing: no such rule"):
        score_settings(*MODEL, "--dpo", "x", "--keep-templates", "nothing")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (MODEL, "nothing to score: give --sft, --dpo or both"),
        ([*MODEL, "--load", "x", "--sft", "a"], "give the model with either --hf-model"),
        ([*MODEL, "--sft", "a", "--seq-length", "1"], "--seq-length 1: must be at least 2"),
        ([*MODEL, "--sft", "a", "--batch-tokens", "1"], "--batch-tokens 1: must be at least 2"),
        ([*MODEL, "--sft", "a", "--sft-filter", "n >"], "--sft-filter"),
    ],
)
def test_what_scoring_refuses(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        score_settings(*flags)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_what_selection_refuses() -> None:
    flags = ["--scores", "scores.jsonl", "--kind", "sft", "--output", "out", "--top-k", "0"]
    with pytest.raises(ConfigError, match="--top-k 0: must be at least 1"):
        settings_from(select_tool.build_parser().parse_args(flags), SelectSettings)


def test_the_help_names_every_choice() -> None:
    assert all(f"{name}: " in " ".join(field_docstrings(SelectSettings)["strategy"].split()) for name in STRATEGIES)
    assert all(name in field_docstrings(ScoreSettings)["chat_template"] for name in BUILT_IN_TEMPLATES)
