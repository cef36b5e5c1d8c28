"""Granite 3: Llama's layers with multipliers of embeddings, scores, branches and logits."""

from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP, MLP_BIAS

MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier")


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
