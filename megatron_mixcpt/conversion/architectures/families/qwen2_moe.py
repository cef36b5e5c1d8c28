"""Qwen2-MoE: Qwen2's attention, small experts, and one for every token whose output goes through a gate."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, QKV_BIAS
from megatron_mixcpt.conversion.architectures.mixtral import ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.mixture_rules import GATED_SHARED_EXPERT
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERT_SIZES, EXPERTS, experts_or_mlp, router_and_layers
from megatron_mixcpt.conversion.architectures.windows import Values, WindowRules


def every_second_layer(values: Values) -> list[bool]:
    """Every second layer slides up to ``max_window_layers``."""
    return [index % 2 == 0 and index < values["max_window_layers"] for index in range(values["num_hidden_layers"])]


QWEN2_MOE = Architecture(
    name="Qwen2MoeForCausalLM",
    name_map=EMBEDDINGS + ATTENTION,
    rules_of_layer=experts_or_mlp(EXPERTS + GATED_SHARED_EXPERT),
    biases={"qkv_bias": QKV_BIAS},
    config_map={**EXPERT_SIZES, "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size"},
    spellings={"num_experts": "num_local_experts"},
    arguments={**ROUTER_ARGUMENTS, "moe_shared_expert_gate": True},
    required={"hidden_act": "silu"},
    hf_defaults={
        **{"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
        **{"qkv_bias": True, "num_key_value_heads": 16, "shared_expert_intermediate_size": 5632},
    },
    windows=WindowRules(every_second_layer, has_layer_types=True),
    adjust=router_and_layers,
    models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
)
