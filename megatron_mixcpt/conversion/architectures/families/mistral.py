"""Mistral and the models that share its architecture: Llama's layers. Ministral 3 scales queries by their position."""

from dataclasses import replace
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer
from megatron_mixcpt.models.options import PositionScale

MISTRAL = Architecture(
    name="MistralForCausalLM",
    models="Mistral 7B, Nemo, Small 2501",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    required={"hidden_act": "silu"},
    hf_defaults={"sliding_window": 4096},
    windows=WindowRules(every_layer),
)

MINISTRAL = replace(
    MISTRAL,
    name="MinistralForCausalLM",
    models="Ministral 8B (2410)",
    windows=WindowRules(every_layer, has_layer_types=True),
)

# What Ministral3Config assumes where config.json has no rope_parameters.
ROPE = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}


def position_scale(config: HFConfig) -> dict[str, Any]:
    """``llama_4_scaling_beta`` and the length before scaling; transformers computes nothing without them."""
    rope = config.require("rope_parameters")
    for key in ("llama_4_scaling_beta", "original_max_position_embeddings"):
        if rope.get(key) is None:
            raise config.refuse("rope_parameters", rope, f"transformers needs its {key}")
    return {"position_scale": PositionScale(rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"])}


MINISTRAL3 = replace(
    MISTRAL,
    name="Ministral3ForCausalLM",
    models="the language models of Ministral 3",
    refused="with Transformer Engine: use `--transformer-impl local`",
    hf_defaults={"sliding_window": None, "head_dim": 128, "rope_parameters": ROPE, "max_position_embeddings": 262144},
    adjust_options=position_scale,
)
