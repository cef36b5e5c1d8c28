"""Values of config.json that can be none, at the edge of what can; in whole folders: ``test_hf_model_folder.py``."""

from typing import Any

import pytest

from megatron_mixcpt.conversion.architectures.config_types import MAX_LAYERS, MAX_LISTED, MAX_SIZE, wrong_value


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("hidden_size", MAX_SIZE, MAX_SIZE + 1),
        ("hidden_size", 1, 0),
        ("num_hidden_layers", MAX_LAYERS, MAX_LAYERS + 1),
        ("num_hidden_layers", 2, 2.0),
        ("vocab_size", 2, True),
        ("rms_norm_eps", 1e-6, 0),
        ("rope_theta", 10**6, 10**400),
        ("rope_theta", 1e6, float("nan")),
        ("tie_word_embeddings", False, 0),
        ("layer_types", ["full_attention"], "full_attention"),
        ("no_rope_layers", [0, 1], [2]),
        ("rope_scaling", {"factor": 8.0}, []),
        ("rope_scaling", {"factor": 8.0}, {"factor": -1}),
    ],
)
def test_the_first_wrong_value_is_named(key: str, good: Any, bad: Any) -> None:
    assert wrong_value({key: good}) is None
    wrong = wrong_value({key: bad})
    assert wrong is not None
    assert wrong[0] == (key if not isinstance(bad, dict) else "factor") and wrong[2].startswith("expected")


def test_null_and_unknown_keys_are_not_looked_at() -> None:
    assert wrong_value({"hidden_size": None, "vocab_size": None, "unknown": object()}) is None


def test_the_number_of_listed_experts_is_bounded() -> None:
    sizes = {"num_hidden_layers": 100, "num_local_experts": MAX_LISTED // 100}
    assert wrong_value(sizes) is None
    wrong = wrong_value({**sizes, "num_hidden_layers": 101})
    assert wrong == ("num_local_experts", 1000, "all layers together have more than 100,000 experts")
