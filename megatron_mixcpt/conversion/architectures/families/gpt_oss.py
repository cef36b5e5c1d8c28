"""gpt-oss: attention sinks, windows in every second layer, and experts with biases and a clamped activation.

An expert is down((up + 1) * gate * sigmoid(1.702 gate)), gate at most ``swiglu_limit`` and up within it both ways.
"""

from typing import Any

from megatron_mixcpt.conversion.architectures.expert_rules import AlternatingGateUp, StackedRename
from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF
from megatron_mixcpt.conversion.architectures.mixtral import (
    ENGINE_EXPERT,
    MIXTRAL,
    NORM_BEFORE_ROUTER,
    ROUTER_ARGUMENTS,
)
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, all_but_every

EXPERTS = HF + "mlp.experts."
YARN = {
    **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    "original_max_position_embeddings": 4096,
}


def _gate_up(kind: str, hf: str) -> Rule:
    name = EXPERTS + hf
    return AlternatingGateUp(f"{ENGINE_EXPERT}linear_fc1.{kind}", name, name, "expert_ffn", bias=kind == "bias")


RULES: tuple[Rule, ...] = (
    Rename(ENGINE + "self_attention.core_attention.softmax_offset", HF + "self_attn.sinks", ("heads",), split=0),
    NORM_BEFORE_ROUTER,
    Rename(ENGINE + "mlp.router.weight", HF + "mlp.router.weight", ("experts", "hidden")),
    Rename(ENGINE + "mlp.router.bias", HF + "mlp.router.bias", ("experts",)),
    _gate_up("weight", "gate_up_proj"),
    _gate_up("bias", "gate_up_proj_bias"),
    StackedRename(
        *(ENGINE_EXPERT + "linear_fc2.weight", EXPERTS + "down_proj", ("hidden", "expert_ffn")),
        split=1,
        transposed=True,
    ),
    StackedRename(ENGINE_EXPERT + "linear_fc2.bias", EXPERTS + "down_proj_bias", ("hidden",)),
)


def _activation(config: HFConfig) -> dict[str, Any]:
    limit = config.require("swiglu_limit")
    return {"engine_config": {"activation_func_clamp_value": float(limit), "glu_linear_offset": 1.0}}


GPT_OSS = Architecture(
    name="GptOssForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + RULES,
    config_map=MIXTRAL.config_map,
    spellings={"num_experts": "num_local_experts"},
    biases={"attention_bias": ATTENTION_BIAS},
    arguments={**ROUTER_ARGUMENTS, "softmax_type": "learnable"},
    options={"activation": "quick_gelu", "mlp_bias": True, "router_bias": True},
    adjust_options=_activation,
    required={"swiglu_alpha": 1.702},
    hf_defaults={
        **{"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128, "attention_bias": True},
        **{"rms_norm_eps": 1e-5, "max_position_embeddings": 131072, "swiglu_limit": 7.0, "rope_theta": 150000.0},
        "rope_parameters": YARN,
    },
    windows=WindowRules(all_but_every(2), has_layer_types=True),
    models="gpt-oss 20b and 120b",
    refused="`swiglu_alpha` other than 1.702; Transformer Engine's layers",
)
