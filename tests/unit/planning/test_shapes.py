"""Model sizes: of the presets, and of folders."""

import dataclasses
import json
from pathlib import Path

import pytest

from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape, model_shape


# The parameters of the published weights, as their safetensors files add up.
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("qwen2-7b", 7_615_616_512),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
    ],
)
def test_presets_have_the_published_number_of_parameters(name: str, num_parameters: int) -> None:
    assert PRESETS[name].num_parameters == num_parameters


def test_a_token_passes_through_some_of_the_experts() -> None:
    """The model cards speak of 12.9 and 3.3 billion; a dense model's parameters are all active."""
    active = {name: PRESETS[name].num_active_parameters for name in ("mixtral-8x7b", "qwen3-30b-a3b", "llama-3-8b")}
    # Six of eight experts are left out, and 120 of 128.
    assert active["mixtral-8x7b"] == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336
    assert active["qwen3-30b-a3b"] == 30_532_122_624 - 48 * 120 * 3 * 2048 * 768
    assert active["llama-3-8b"] == PRESETS["llama-3-8b"].num_parameters


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": 100,
}


@pytest.mark.parametrize("name", ["llama-3-8b", "Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B"])
def test_presets_are_found_by_the_names_people_use(name: str) -> None:
    assert model_shape(name) is PRESETS["llama-3-8b"]


def test_a_folder_says_its_own_sizes(tmp_path: Path) -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        **SIZES,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_same(model_shape(str(tmp_path)), ModelShape(2, 64, 96, 4, 2, 100, 16, 128, tied=True, qkv_bias=True))


def check_same(folder: ModelShape, formula: ModelShape) -> None:
    """What is counted from the rules of the family is what the sizes of Llama's layers give."""
    assert (folder.layers, folder.norm_size) == (formula.layers, formula.norm_size)
    assert dataclasses.replace(folder, counted_layers=(), counted_norm=0) == formula


def test_layers_are_counted_each_on_its_own(tmp_path: Path) -> None:
    """Of two tensor-parallel ranks each holds half of the matrices, and all of norms and of row-parallel biases."""
    config = {"architectures": ["LlamaForCausalLM"], **SIZES, "attention_bias": True, "mlp_bias": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first, second = model_shape(str(tmp_path)).layers
    assert first == second
    assert first.divided == 64 * (64 + 2 * 32 + 64 + 3 * 96) + (64 + 2 * 32) + 2 * 96
    assert (first.copied, first.expert, first.inner) == (2 * 64 + 2 * 64, 0, 96)


def test_a_folder_of_a_mixture_of_experts(tmp_path: Path) -> None:
    config = {
        "architectures": ["MixtralForCausalLM"],
        **SIZES,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    experts = {"num_experts": 4, "moe_ffn_hidden_size": 96, "moe_router_topk": 2}
    check_same(model_shape(str(tmp_path)), ModelShape(2, 64, 96, 4, 2, 100, 16, 128, **experts))


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gpt-17 is neither a folder on this machine nor one of llama-3-8b"):
        model_shape("gpt-17")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        model_shape(str(tmp_path))
