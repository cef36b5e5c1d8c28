"""Granite 3: Llama with multipliers of embeddings, scores, branches and logits; some with Mixtral's experts."""

from dataclasses import replace
from typing import Any

from megatron_mixcpt.conversion.architectures.expert_rules import StackedGateUp, StackedRename
from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import (
    ATTENTION,
    ATTENTION_BIAS,
    EMBEDDINGS,
    ENGINE,
    HF,
    MLP,
    MLP_BIAS,
)
from megatron_mixcpt.conversion.architectures.mixtral import (
    ENGINE_EXPERT,
    MIXTRAL,
    NORM_BEFORE_ROUTER,
    ROUTER_ARGUMENTS,
)
from megatron_mixcpt.conversion.architectures.rules import Rename

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier")

_EXPERTS = HF + "block_sparse_moe."
_GATE_UP = _EXPERTS + "input_linear.weight"

EXPERTS = (
    NORM_BEFORE_ROUTER,
    Rename(ENGINE + "mlp.router.weight", _EXPERTS + "router.layer.weight", ("experts", "hidden")),
    StackedGateUp(ENGINE_EXPERT + "linear_fc1.weight", _GATE_UP, _GATE_UP, "expert_ffn"),
    StackedRename(
        ENGINE_EXPERT + "linear_fc2.weight", _EXPERTS + "output_linear.weight", ("hidden", "expert_ffn"), split=1
    ),
)


def logit_multiplier(config: HFConfig) -> dict[str, Any]:
    """Logits are divided by ``logits_scaling``."""
    return {"logit_multiplier": 1.0 / config.require("logits_scaling")}


GRANITE = Architecture(
    name="GraniteForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    biases={"attention_bias": ATTENTION_BIAS, "mlp_bias": MLP_BIAS},
    option_map={name: name for name in MULTIPLIERS},
    adjust_options=logit_multiplier,
    required={"hidden_act": "silu"},
    # Scores are not divided by the square root of the head size where attention_multiplier is absent.
    hf_defaults={**dict.fromkeys(MULTIPLIERS, 1.0), "logits_scaling": 1.0, "max_position_embeddings": 2048},
    models="Granite 3.0 to 3.3 (dense)",
)

GRANITE_MOE = replace(
    GRANITE,
    name="GraniteMoeForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + EXPERTS,
    biases={"attention_bias": ATTENTION_BIAS},
    config_map=MIXTRAL.config_map,
    arguments=ROUTER_ARGUMENTS,
    hf_defaults={**GRANITE.hf_defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
    models="Granite 3.0 and 3.1 1B-A400M and 3B-A800M",
)
