"""Qwen3-Next: the layers of Qwen3.5 with experts, one of which serves every token, and fused projections."""

from typing import Any

from megatron_mixcpt.conversion.architectures.families.qwen3_5 import (
    ARGUMENTS,
    DELTA,
    LINEAR,
    LINEAR_SIZES,
    layers_and_heads,
    mixers,
)
from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import EMBEDDINGS
from megatron_mixcpt.conversion.architectures.mixtral import ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.mixture_rules import GATED_SHARED_EXPERT
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERT_SIZES, EXPERTS, softmax_before_choice
from megatron_mixcpt.conversion.architectures.rope import RopeRules
from megatron_mixcpt.conversion.architectures.sectioned_rules import InterleavedDeltaProjection

PROJECTION = InterleavedDeltaProjection(
    DELTA + "in_proj.weight", LINEAR + "in_proj_qkvz.weight", LINEAR + "in_proj_ba.weight"
)


def _arguments(config: HFConfig) -> dict[str, Any]:
    return {**layers_and_heads(config), **softmax_before_choice(config)}


QWEN3_NEXT = Architecture(
    name="Qwen3NextForCausalLM",
    name_map=EMBEDDINGS + EXPERTS + GATED_SHARED_EXPERT,
    rules_of_layer=mixers(PROJECTION),
    config_map={
        **{**{name: name for name in LINEAR_SIZES}, **EXPERT_SIZES},
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    },
    spellings={"num_experts": "num_local_experts"},
    arguments={**ROUTER_ARGUMENTS, **ARGUMENTS, "moe_shared_expert_gate": True},
    required={"hidden_act": "silu", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    hf_defaults={
        **{**LINEAR_SIZES, "head_dim": 256, "num_key_value_heads": 2, "partial_rotary_factor": 0.25},
        "norm_topk_prob": True,
    },
    rope=RopeRules(rotates_partly=True),
    adjust=_arguments,
    carried_tensors=r"mtp\..*",
    models="Qwen3-Next-80B-A3B",
    refused="`attention_bias`; dense layers between (`mlp_only_layers`, `decoder_sparse_step`)",
)
