"""Gemma 2 and 3, Granite and Cohere 2 as their config.json has them: what absent keys mean, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_mixcpt.conversion.architectures.hf_config import HFConfig, engine_settings, model_options
from megatron_mixcpt.conversion.architectures.registry import ARCHITECTURES
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import ModelOptions

# All that the text_config of google/gemma-3-4b-it says.
GEMMA3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def read(name: str, values: dict[str, Any]) -> tuple[dict[str, Any], ModelOptions]:
    """The engine's arguments and the options."""
    architecture = ARCHITECTURES[name]
    config = HFConfig(Path("config.json"), values, architecture)
    settings = engine_settings(config, architecture)
    return {key: setting.value for key, setting in settings.items()}, model_options(config, architecture)


def test_a_published_gemma_3() -> None:
    """As transformers completes the few keys that its file has."""
    arguments, options = read("Gemma3ForCausalLM", GEMMA3_4B)
    expected = transformers.Gemma3TextConfig(**GEMMA3_4B)
    assert arguments["window_size"] == (1023, 0)
    slides = [kind == "sliding_attention" for kind in expected.layer_types]
    assert [bool(slides) for slides in arguments["window_attn_skip_freq"]] == slides
    assert arguments["num_attention_heads"] == expected.num_attention_heads
    assert arguments["max_position_embeddings"] == expected.max_position_embeddings
    for rope, kind in zip(options.layer_ropes, expected.layer_types, strict=True):
        assert {**rope.parameters} == expected.rope_parameters[kind]
    assert options.embedding_multiplier == 2560**0.5 and options.attention_multiplier == 256**-0.5
    assert options.final_softcap is None and options.attention_softcap is None


def test_caps_that_gemma_2_has_unless_they_are_null() -> None:
    _, options = read("Gemma2ForCausalLM", {})
    assert (options.attention_softcap, options.final_softcap) == (50.0, 30.0)
    _, options = read("Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (options.attention_softcap, options.final_softcap) == (None, None)


def test_rotary_embedding_of_cohere_2_is_in_layers_with_a_window() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "layer_norm_eps": 1e-5}
    arguments, options = read("Cohere2ForCausalLM", sizes)
    assert arguments["no_rope_freq"] == [0, 0, 0, 1] and arguments["window_attn_skip_freq"] == [1, 1, 1, 0]
    assert options.logit_multiplier == 0.0625
    assert read("Cohere2ForCausalLM", {**sizes, "sliding_window": None})[0]["no_rope_freq"] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("Gemma2ForCausalLM", {"hidden_activation": "gelu"}, "hidden_activation 'gelu'"),
        ("Gemma2ForCausalLM", {"final_logit_softcapping": -1.0}, "final_logit_softcapping -1.0"),
        ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": "LLG"}, "sliding_window_pattern 'LLG'"),
        ("GraniteForCausalLM", {"logits_scaling": 0}, "logits_scaling 0"),
    ],
)
def test_what_is_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(name, values)
