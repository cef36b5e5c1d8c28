"""Epochs and weights by dataset, and by a kind that stands for its named sources, against counts done by hand."""

import pytest

from megatron_mixcpt.data.mixture.shares import parse_epochs, parse_values, parse_weights, passes_of, share_by_weight
from megatron_mixcpt.errors import ConfigError

DATASETS = ("cpt.law", "cpt.replay", "sft")


def test_flags_are_read() -> None:
    assert parse_epochs("1.5") == 1.5
    assert parse_epochs("cpt=1, sft=0.5") == {"cpt": 1, "sft": 0.5}
    assert parse_weights("cpt.law=0.5,cpt.re-play_2=0.2,sft=0.3") == {"cpt.law": 0.5, "cpt.re-play_2": 0.2, "sft": 0.3}
    assert parse_weights(None) is None


@pytest.mark.parametrize("text", ["", "cpt", "cpt=x", "web=1", "cpt=1,,", "cpt.=1", "cpt.a.b=1", "cpt.a/b=1"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--epochs {text}: expected kinds and numbers such as cpt=0.7"):
        parse_values("--epochs", text)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="cpt is given twice"):
        parse_values("--epochs", "cpt=1,sft=1,cpt=2")


def test_epochs_of_a_kind_count_for_each_of_its_sources() -> None:
    assert passes_of(DATASETS, 3) == {"cpt.law": 3, "cpt.replay": 3, "sft": 3}
    assert passes_of(DATASETS, {"cpt": 2}) == {"cpt.law": 2, "cpt.replay": 2, "sft": 1}
    assert passes_of(DATASETS, {"cpt.law": 0.5, "sft": 0}) == {"cpt.law": 0.5, "cpt.replay": 1, "sft": 0}


def test_weight_of_a_kind_is_shared_by_its_sources_in_proportion() -> None:
    """1,000 tokens, half of them cpt's: 500 as 300 : 100."""
    tokens = {"cpt.law": 300.0, "cpt.replay": 100.0, "sft": 600.0}
    assert share_by_weight(tokens, {"cpt": 1, "sft": 1}) == {"cpt.law": 375, "cpt.replay": 125, "sft": 500}
    by_source = {"cpt.law": 0.5, "cpt.replay": 0.3, "sft": 0.2}
    assert share_by_weight(tokens, by_source) == pytest.approx({"cpt.law": 500, "cpt.replay": 300, "sft": 200})
    assert share_by_weight(tokens, {"cpt.replay": 1}) == {"cpt.law": 0, "cpt.replay": 1000, "sft": 0}


def test_kind_and_source_together_are_refused() -> None:
    message = r"--mixture-weights cpt=1 stands for cpt.law, cpt.replay: give either it or them"
    with pytest.raises(ConfigError, match=message):
        share_by_weight(dict.fromkeys(DATASETS, 1.0), {"cpt": 1, "cpt.law": 1})
    with pytest.raises(ConfigError, match=r"--epochs cpt.web=1: the mixture has only cpt.law, cpt.replay, sft"):
        passes_of(DATASETS, {"cpt.web": 1})
