"""What a model folder may say, and the one line that each refusal prints."""

import argparse
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.hf_model_folder import read_config, read_model_folder, refuse_contradictions
from megatron_mixcpt.errors import CheckpointError, ConfigError, MixCPTError
from tests.unit.conversion import tiny_hf


def folder_with(tmp_path: Path, name: str = "llama", **changes) -> Path:
    """A folder with ``config.json`` alone; a change to None takes the key out."""
    architectures = [type(tiny_hf.CONFIGS[name]).__name__.replace("Config", "ForCausalLM")]
    config = {**tiny_hf.CONFIGS[name].to_dict(), "architectures": architectures, **changes}
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )
    return tmp_path


def test_llama3_arguments(tmp_path):
    plan = read_config(folder_with(tmp_path, "llama3_tied"))
    expected = {
        "num_layers": 4,
        "hidden_size": 48,
        "ffn_hidden_size": 80,
        "num_attention_heads": 6,
        "num_query_groups": 2,
        "kv_channels": 8,
        "vocab_size": 259,
        "rotary_base": 500000,
        "use_rope_scaling": True,
        "rope_scaling_factor": 32.0,
        "untie_embeddings_and_output_weights": False,
        "normalization": "RMSNorm",
        "add_qkv_bias": False,
        "hidden_dropout": 0.0,
    }
    assert {name: plan.engine_arguments[name] for name in expected} == expected
    assert plan.tied and plan.vocab_size == 259


def test_old_spelling_of_rope(tmp_path):
    old = {**tiny_hf.LLAMA3_ROPE, "rope_theta": None}
    folder = folder_with(tmp_path, rope_parameters=None, rope_theta=250000.0, rope_scaling=old)
    arguments = read_config(folder).engine_arguments
    assert (arguments["rotary_base"], arguments["rope_scaling_factor"]) == (250000, 32.0)


def test_a_separate_head_size(tmp_path):
    assert read_config(folder_with(tmp_path, head_dim=16)).engine_arguments["kv_channels"] == 16


def test_experts_and_their_older_spelling(tmp_path):
    folder = folder_with(tmp_path, "qwen3_moe", num_local_experts=None, num_experts=4)
    arguments = read_config(folder).engine_arguments
    expected = {"num_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24, "moe_router_pre_softmax": False}
    assert {name: arguments[name] for name in expected} == expected


def test_layers_without_rope(tmp_path):
    assert read_config(folder_with(tmp_path, "smollm3_tied")).engine_arguments["no_rope_freq"] == [0, 0, 0, 1]


def test_every_argument_is_one_of_the_engine(tmp_path):
    """The engine's own parser knows each name, so that training can fill it in."""
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    known = {action.dest for action in parser._actions}
    for name in tiny_hf.CONFIGS:
        assert set(read_config(folder_with(tmp_path, name)).engine_arguments) <= known


def test_qwen2_has_a_bias_and_may_name_a_window_it_does_not_use(tmp_path):
    folder = folder_with(tmp_path, "qwen2", sliding_window=8, use_sliding_window=False, layer_types=None)
    assert read_config(folder).engine_arguments["add_qkv_bias"] is True


def test_biases_of_attention_and_mlp(tmp_path):
    """Each key alone, and only where transformers reads it for the family."""
    has_none = (False, False, False)
    for name, key, expected in (
        ("llama", "attention_bias", (True, True, False)),
        ("llama", "mlp_bias", (False, False, True)),
        ("qwen3", "attention_bias", (True, True, False)),
        ("qwen3", "mlp_bias", has_none),
        ("mistral", "attention_bias", has_none),
    ):
        plan = read_config(folder_with(tmp_path, name, **{key: True}))
        options = plan.options
        found = (plan.engine_arguments["add_qkv_bias"], options.attention_output_bias, options.mlp_bias)
        assert found == expected, (name, key)
        assert any(rule.endswith("linear_proj.bias") for rule in plan.rules()) == expected[1]
        assert any(rule.endswith("linear_fc1.bias") for rule in plan.rules()) == expected[2]
    plan = read_config(folder_with(tmp_path, "llama", attention_bias=True))
    with pytest.raises(ConfigError, match=r"--add-qkv-bias False \(it has attention_bias True\)"):
        refuse_contradictions({"add_qkv_bias": False}, plan)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"architectures": ["GPT2LMHeadModel"]}, "architecture ['GPT2LMHeadModel'] is not supported"),
        ("llama", {"architectures": None}, "is not supported; these are: LlamaForCausalLM"),
        ("llama", {"num_hidden_layers": None}, "has no num_hidden_layers"),
        ("llama", {"mlp_bias": "yes"}, "mlp_bias 'yes' cannot be trained: expected true or false"),
        ("phi3", {"attention_bias": True}, "attention_bias True cannot be trained"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu' cannot be trained"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads 4 cannot be trained: it must divide"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method 'gptq'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config.quant_method None cannot be trained"),
        ("llama", {"quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0"}}, "scale_fmt 'ue8m0'"),
        ("llama", {"quantization_config": "fp8"}, "expected an object"),
        ("llama", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32]}}, "two positive integers"),
        ("llama", {"quantization_config": {"quant_method": "fp8", "activation_scheme": "x"}}, "activation_scheme 'x'"),
        ("qwen3_moe", {"mlp_only_layers": list(range(9))}, "no layer has experts"),
        ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers 1 cannot be trained"),
    ],
    ids=lambda value: value[:40].replace(" ", "_") if isinstance(value, str) else "",
)
def test_what_the_engine_cannot_express_is_refused(tmp_path, name, changes, message):
    folder = folder_with(tmp_path, name, **changes)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_config(folder)
    assert str(folder / "config.json") in str(caught.value) and "\n" not in str(caught.value)


def test_contradicting_flags_are_all_named(tmp_path):
    plan = read_config(folder_with(tmp_path))
    refuse_contradictions({"num_layers": 4, "swiglu": True, "hidden_dropout": 0.1, "lr": 1e-5}, plan)
    with pytest.raises(ConfigError) as caught:
        refuse_contradictions({"num_layers": 31, "layernorm_epsilon": 1e-5, "add_bias_linear": True}, plan)
    text = str(caught.value)
    assert "--num-layers 31 (it has num_hidden_layers 4)" in text and f"contradict {tmp_path / 'config.json'}" in text
    assert "--norm-epsilon 1e-05 (it has rms_norm_eps 1e-06)" in text and "--disable-bias-linear True" in text


def test_not_a_model_folder(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        read_model_folder(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has no config.json"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_model_folder(tmp_path)


def test_dtype_is_that_of_the_weights(tmp_path):
    assert read_model_folder(tiny_hf.save("llama", tmp_path / "m", torch.bfloat16)).dtype == torch.bfloat16


def test_tensors_that_do_not_match_the_config(tmp_path):
    folder = tiny_hf.save("llama", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())

    def refusal(**changes) -> str:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(MixCPTError) as caught:
            read_model_folder(folder)
        return str(caught.value)

    missing = refusal(num_hidden_layers=5)
    assert "missing model.layers.4." in missing and "and 6 more; unexpected none" in missing
    assert "missing none; unexpected model.layers.3." in refusal(num_hidden_layers=3)
    assert "has shape (259, 48), config.json implies (260, 48)" in refusal(vocab_size=260)
    assert "missing model.layers.0.self_attn.q_proj.bias" in refusal(architectures=["Qwen2ForCausalLM"])
    assert "ties the embeddings, but lm_head.weight is not" in refusal(tie_word_embeddings=True)


def test_weights_of_other_dtypes(tmp_path):
    tiny_hf.save("llama", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.norm.weight is int8, and only bfloat16, float16, float32 can be"):
        read_model_folder(tmp_path)
