"""Qwen3.5: gated delta nets in three layers of four, and attention whose output is gated in the fourth."""

from collections.abc import Callable
from typing import Any

from megatron_mixcpt.conversion.architectures.gated_rules import MergeGatedQKV
from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.rope import RopeRules
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule
from megatron_mixcpt.conversion.architectures.sectioned_rules import DeltaConvolution, DeltaProjection

DELTA, LINEAR = ENGINE + "self_attention.", HF + "linear_attn."

GATED_ATTENTION: tuple[Rule, ...] = (
    ATTENTION[0],
    MergeGatedQKV(
        ENGINE + "self_attention.linear_qkv.weight",
        HF + "self_attn.q_proj.weight",
        HF + "self_attn.k_proj.weight",
        HF + "self_attn.v_proj.weight",
    ),
    ATTENTION[2],
    *QK_NORM,
)

DELTA_NET: tuple[Rule, ...] = (
    Rename(DELTA + "in_proj.layer_norm_weight", HF + "input_layernorm.weight", ("hidden",)),
    DeltaConvolution(DELTA + "conv1d.weight", LINEAR + "conv1d.weight"),
    Rename(DELTA + "A_log", LINEAR + "A_log", ("delta_value_heads",), split=0),
    Rename(DELTA + "dt_bias", LINEAR + "dt_bias", ("delta_value_heads",), split=0),
    Rename(DELTA + "out_norm.weight", LINEAR + "norm.weight", ("delta_value",)),
    Rename(DELTA + "out_proj.weight", LINEAR + "out_proj.weight", ("hidden", "delta_values"), split=1),
)

PROJECTION = DeltaProjection(
    DELTA + "in_proj.weight",
    LINEAR + "in_proj_qkv.weight",
    LINEAR + "in_proj_z.weight",
    LINEAR + "in_proj_b.weight",
    LINEAR + "in_proj_a.weight",
)

LINEAR_SIZES = {
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
"""Keys of config.json, named as the engine's arguments, and what transformers assumes for them."""


def delta_layers(config: HFConfig) -> list[int]:
    """1 for layers with a gated delta net, 0 for layers with attention, as transformers tells them apart."""
    number, types = config.require("num_hidden_layers"), config.get("layer_types")
    if types is None:
        interval = config.get("full_attention_interval", 4)
        return [int((layer + 1) % interval != 0) for layer in range(number)]
    if len(types) != number or not set(types) <= {"linear_attention", "full_attention"}:
        reason = f"expected {number} entries, num_hidden_layers, each linear_attention or full_attention"
        raise config.refuse("layer_types", types, reason)
    return [int(kind == "linear_attention") for kind in types]


def layers_and_heads(config: HFConfig) -> dict[str, Any]:
    """Engine arguments of the layers; raises ConfigError for heads of values that heads of keys cannot share."""
    keys, values = config.require("linear_num_key_heads"), config.require("linear_num_value_heads")
    if values % keys:
        raise config.refuse("linear_num_value_heads", values, f"it must be a multiple of linear_num_key_heads {keys}")
    return {"linear_attention_freq": delta_layers(config)}


def mixers(projection: Rule) -> Callable[[HFConfig, int], tuple[Rule, ...]]:
    """``Architecture.rules_of_layer``, given the rule of a gated delta net's input projection."""
    return lambda config, layer: (*DELTA_NET, projection) if delta_layers(config)[layer] else GATED_ATTENTION


ARGUMENTS = {
    "layernorm_zero_centered_gamma": True,
    "qk_layernorm": True,
    "attention_output_gate": True,
    "experimental_attention_variant": "gated_delta_net",
}

QWEN3_5 = Architecture(
    name="Qwen3_5ForCausalLM",
    name_map=EMBEDDINGS + MLP,
    rules_of_layer=mixers(PROJECTION),
    config_map={name: name for name in LINEAR_SIZES},
    arguments=ARGUMENTS,
    required={"hidden_act": "silu", "attention_bias": False},
    hf_defaults={**LINEAR_SIZES, "head_dim": 256, "num_key_value_heads": 4, "partial_rotary_factor": 0.25},
    rope=RopeRules(rotates_partly=True),
    adjust=layers_and_heads,
    carried_tensors=r"mtp\..*",
    models="Qwen3.5 (0.8B to 27B), text only",
    refused="`attention_bias`",
)
