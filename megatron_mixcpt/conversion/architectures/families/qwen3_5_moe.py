"""Qwen3.5-MoE: the layers of Qwen3.5 with the experts of Qwen3-Next."""

from dataclasses import replace
from typing import Any

from megatron_mixcpt.conversion.architectures.families.qwen3_5 import PROJECTION, mixers
from megatron_mixcpt.conversion.architectures.families.qwen3_next import QWEN3_NEXT
from megatron_mixcpt.conversion.architectures.hf_config import HFConfig


def _arguments(config: HFConfig) -> dict[str, Any]:
    assert QWEN3_NEXT.adjust is not None
    return {**QWEN3_NEXT.adjust(config), "ffn_hidden_size": config.require("moe_intermediate_size")}


QWEN3_5_MOE = replace(
    QWEN3_NEXT,
    name="Qwen3_5MoeForCausalLM",
    rules_of_layer=mixers(PROJECTION),
    required={"hidden_act": "silu", "attention_bias": False, "norm_topk_prob": True},
    # No layer has an MLP, and config.json no size of one; the engine wants a number.
    hf_defaults={**QWEN3_NEXT.hf_defaults, "intermediate_size": 512},
    adjust=_arguments,
    models="Qwen3.5-35B-A3B to 397B-A17B, text only, as transformers saves them (a tensor for each expert)",
    refused="`attention_bias`",
)
