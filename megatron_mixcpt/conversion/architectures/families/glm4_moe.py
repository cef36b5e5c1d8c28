"""GLM-4.5: attention with biases of query, key and value and, in the largest, norms; half of a head's channels rotate.

The first layers have an MLP, the others experts, of which one serves every token.
"""

from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, QKV_BIAS
from megatron_mixcpt.conversion.architectures.mixture_rules import (
    EXPERT_SPELLINGS,
    ROUTER_BIAS,
    SIGMOID_ROUTER,
    dense_layers_first,
    mixture_arguments,
    shared_expert_rules,
)
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERT_SIZES
from megatron_mixcpt.conversion.architectures.rope import RopeRules
from megatron_mixcpt.conversion.architectures.rules import Rule

_mlp_rules = dense_layers_first(ROUTER_BIAS + shared_expert_rules("shared_experts"))


def rules_of_layer(config: HFConfig, layer: int) -> tuple[Rule, ...]:
    """The MLP or the experts, and the norms of query and key where ``use_qk_norm`` says so."""
    return _mlp_rules(config, layer) + (QK_NORM if config.get("use_qk_norm") else ())


def arguments(config: HFConfig) -> dict[str, Any]:
    """What the layers have, as the engine's arguments."""
    return {**mixture_arguments(config), "qk_layernorm": config.get("use_qk_norm", False)}


GLM4_MOE = Architecture(
    name="Glm4MoeForCausalLM",
    name_map=EMBEDDINGS + ATTENTION,
    rules_of_layer=rules_of_layer,
    biases={"attention_bias": QKV_BIAS},
    config_map=EXPERT_SIZES,
    spellings=EXPERT_SPELLINGS,
    arguments=SIGMOID_ROUTER,
    required={"hidden_act": "silu", "norm_topk_prob": True},
    hf_defaults={
        **{"partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
        **{"n_shared_experts": 1, "routed_scaling_factor": 1.0, "first_k_dense_replace": 1},
    },
    rope=RopeRules(rotates_partly=True),
    options={"router_group_experts": 2},
    adjust=arguments,
    carried_tensors=r"model\.layers\.{num_layers}\..*",
    models="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    refused="chosen experts whose weights are not normalised (`norm_topk_prob`)",
)
