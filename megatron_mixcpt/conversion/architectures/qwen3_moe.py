"""Qwen3-MoE: Qwen3's attention and a mixture of small experts in every layer, or in some."""

from collections.abc import Callable
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.mixtral import ENGINE_EXPERT, NORM_BEFORE_ROUTER, ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

EXPERT_SIZES = {
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
}

HF_EXPERT = HF + "mlp.experts.{expert}."

EXPERTS: tuple[Rule, ...] = (
    NORM_BEFORE_ROUTER,
    Rename(ENGINE + "mlp.router.weight", HF + "mlp.gate.weight", ("experts", "hidden")),
    MergeGateUp(
        ENGINE_EXPERT + "linear_fc1.weight", HF_EXPERT + "gate_proj.weight", HF_EXPERT + "up_proj.weight", "expert_ffn"
    ),
    Rename(ENGINE_EXPERT + "linear_fc2.weight", HF_EXPERT + "down_proj.weight", ("hidden", "expert_ffn"), split=1),
)


def softmax_before_choice(config: HFConfig) -> dict[str, bool]:
    """Without renormalisation, an expert's weight is its softmax over all experts, taken before the best are chosen."""
    return {"moe_router_pre_softmax": not config.get("norm_topk_prob", False)}


def layers_with_experts(config: HFConfig) -> list[int]:
    """1 for layers with experts, every ``decoder_sparse_step``-th that ``mlp_only_layers`` does not list; else 0."""
    step, listed = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers", [])
    number = config.require("num_hidden_layers")
    layers = [int((layer + 1) % step == 0 and layer not in listed) for layer in range(number)]
    if not any(layers):
        raise config.refuse("mlp_only_layers", listed, f"with decoder_sparse_step {step}, no layer has experts")
    return layers


def router_and_layers(config: HFConfig) -> dict[str, Any]:
    """The engine's arguments of the router and of which layers have one."""
    layers = layers_with_experts(config)
    return {**softmax_before_choice(config), "moe_layer_freq": 1 if all(layers) else layers}


def experts_or_mlp(
    experts: tuple[Rule, ...], layers: Callable[[HFConfig], list[int]] = layers_with_experts
) -> Callable[[HFConfig, int], tuple[Rule, ...]]:
    """``Architecture.rules_of_layer`` of models with an MLP in the layers that have no experts.

    Args:
        experts: the rules of a layer with experts.
        layers: 1 for each layer that has some, else 0.
    """
    return lambda config, layer: experts if layers(config)[layer] else MLP


QWEN3_MOE = Architecture(
    name="Qwen3MoeForCausalLM",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B",
    name_map=EMBEDDINGS + ATTENTION + QK_NORM,
    rules_of_layer=experts_or_mlp(EXPERTS),
    config_map=EXPERT_SIZES,
    spellings={"num_experts": "num_local_experts"},
    arguments={**ROUTER_ARGUMENTS, "qk_layernorm": True},
    biases={"attention_bias": ATTENTION_BIAS},
    required={"hidden_act": "silu"},
    hf_defaults={"use_sliding_window": False, "sliding_window": 4096},
    windows=WindowRules(every_layer),
    adjust=router_and_layers,
)
