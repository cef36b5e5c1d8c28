"""The card of an exported model: what is known of the run, no paths. Written by an export: ``test_convert.py``."""

import hashlib
from pathlib import Path

from megatron_mixcpt.conversion.model_card import model_card

ORIGIN = {"base_model": "Meta-Llama-3-8B", "digest": "abc"}


def test_a_model_that_was_not_trained() -> None:
    lines = model_card(ORIGIN, {}, {}).splitlines()
    assert lines[:3] == ["---", "library_name: transformers", "base_model: Meta-Llama-3-8B"]
    assert "Converted through Megatron without training." in lines
    assert lines[-1] == "| digest of the base model's config and tokenizer | abc |"


def test_a_trained_model(tmp_path: Path) -> None:
    (tmp_path / "mixture.json").write_text("{}")
    arguments = {"consumed_train_samples": 640, "lr": 2e-5, "alpha": 0.8, "min_lr": None, "mixture": str(tmp_path)}
    card = model_card(ORIGIN, arguments | {"teacher": "/home/me/teacher"}, {"ntp loss at iteration 20": 1.5})
    for line in (
        "# Meta-Llama-3-8B, trained further with Mix-CPT",
        "| learning rate | 2e-05 |",
        "| alpha (weight of next-token prediction) | 0.8 |",
        "| training samples seen | 640 |",
        "| teacher | teacher |",
        f"| data | {tmp_path.name} |",
        f"| SHA-256 of the data's manifest | {hashlib.sha256(b'{}').hexdigest()} |",
        "| ntp loss at iteration 20 | 1.5 |",
    ):
        assert line in card.splitlines()
    assert "/home/me" not in card and str(tmp_path) not in card and "final learning rate" not in card


def test_values_that_are_not_plain_are_left_out() -> None:
    card = model_card({}, {"consumed_train_samples": 1, "seed": object(), "lr": [1e-5], "mixture": "nowhere"}, {})
    assert "seed" not in card and "learning rate" not in card and "SHA-256" not in card
    assert "base_model: unknown" in card
