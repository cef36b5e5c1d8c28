"""DeepSeek-V3 and DeepSeek-V2: latent attention, and experts of which some serve every token.

V3's router has sigmoids, a bias in the choice and normalised weights, V2's is a softmax over all experts.
"""

from collections.abc import Callable
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import EMBEDDINGS, ENGINE, HF
from megatron_mixcpt.conversion.architectures.mixtral import ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.mixture_rules import (
    EXPERT_SPELLINGS,
    ROUTER_BIAS,
    SIGMOID_ROUTER,
    dense_layers_first,
    mixture_arguments,
    shared_expert_rules,
)
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERT_SIZES
from megatron_mixcpt.conversion.architectures.rope import RopeRules, rope_of
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule

_ENGINE, _HF = ENGINE + "self_attention.", HF + "self_attn."

ATTENTION = (
    Rename(ENGINE + "input_layernorm.weight", HF + "input_layernorm.weight", ("hidden",)),
    Rename(_ENGINE + "linear_kv_down_proj.weight", _HF + "kv_a_proj_with_mqa.weight", ("kv_rank_and_rope", "hidden")),
    Rename(_ENGINE + "linear_kv_up_proj.layer_norm_weight", _HF + "kv_a_layernorm.weight", ("kv_rank",)),
    Rename(_ENGINE + "linear_kv_up_proj.weight", _HF + "kv_b_proj.weight", ("latent_kv", "kv_rank"), split=0),
    Rename(_ENGINE + "linear_proj.weight", _HF + "o_proj.weight", ("hidden", "latent_value"), split=1),
)
QUERY = (Rename(_ENGINE + "linear_q_proj.weight", _HF + "q_proj.weight", ("latent_query", "hidden"), split=0),)
LATENT_QUERY = (
    Rename(_ENGINE + "linear_q_down_proj.weight", _HF + "q_a_proj.weight", ("q_rank", "hidden")),
    Rename(_ENGINE + "linear_q_up_proj.layer_norm_weight", _HF + "q_a_layernorm.weight", ("q_rank",)),
    Rename(_ENGINE + "linear_q_up_proj.weight", _HF + "q_b_proj.weight", ("latent_query", "q_rank"), split=0),
)
SHARED = shared_expert_rules("shared_experts")
LATENT = {"group_query_attention": False, "multi_latent_attention": True}
SIZES = {
    **EXPERT_SIZES,
    **{"kv_lora_rank": "kv_lora_rank", "qk_nope_head_dim": "qk_head_dim", "v_head_dim": "v_head_dim"},
}
# transformers has the rotating channels in head_dim, from which it makes the table.
SPELLINGS = {**EXPERT_SPELLINGS, "qk_rope_head_dim": "head_dim"}
EPSILON = {"latent_norm_epsilon": 1e-6}  # of transformers' code, whatever rms_norm_eps is


def layer_rules(experts: tuple[Rule, ...]) -> Callable[[HFConfig, int], tuple[Rule, ...]]:
    """The MLP or experts of a layer, and its queries."""
    mlp_rules = dense_layers_first(experts)
    return lambda config, layer: mlp_rules(config, layer) + (LATENT_QUERY if config.get("q_lora_rank") else QUERY)


def arguments(config: HFConfig) -> dict[str, Any]:
    """The engine's arguments of latent attention and of the experts. Raises ConfigError for grouped queries."""
    heads, groups = config.require("num_attention_heads"), config.get("num_key_value_heads")
    if groups not in (None, heads):
        raise config.refuse("num_key_value_heads", groups, f"latent attention has num_attention_heads {heads} of them")
    rotating = config.require("head_dim")
    factor, mscale_all_dim = rope_of(config.values, RopeRules(), rotating, config.refuse).latent_scaling
    return {
        **mixture_arguments(config),
        "kv_channels": config.require("qk_nope_head_dim") + rotating,
        "qk_pos_emb_head_dim": rotating,
        "q_lora_rank": config.get("q_lora_rank"),
        "rotary_scaling_factor": factor,
        "mscale_all_dim": mscale_all_dim,
    }


def softmax_arguments(config: HFConfig) -> dict[str, Any]:
    """The same with V2's groups, which ``topk_method`` switches on. Raises ConfigError for another method."""
    method = config.get("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.refuse("topk_method", method, "transformers has greedy and group_limited_greedy")
    no_groups = {"moe_router_num_groups": None, "moe_router_group_topk": None}
    return arguments(config) | (no_groups if method == "greedy" else {})


DEEPSEEK_V3 = Architecture(
    name="DeepseekV3ForCausalLM",
    name_map=EMBEDDINGS + ATTENTION,
    rules_of_layer=layer_rules(ROUTER_BIAS + SHARED),
    config_map=SIZES,
    spellings=SPELLINGS,
    arguments={**LATENT, **SIGMOID_ROUTER},
    required={"hidden_act": "silu", "norm_topk_prob": True, "attention_bias": False, "rope_interleave": True},
    hf_defaults={
        **{"num_key_value_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128},
        **{"n_shared_experts": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3},
        **{"n_group": 8, "topk_group": 4},
    },
    options={"router_group_experts": 2, **EPSILON},
    adjust=arguments,
    carried_tensors=r"model\.layers\.{num_layers}\..*",
    models="DeepSeek-V3, DeepSeek-R1, Moonlight, Kimi K2",
    refused="`attention_bias`, `rope_interleave` false, `norm_topk_prob` false",
)

DEEPSEEK_V2 = Architecture(
    name="DeepseekV2ForCausalLM",
    name_map=EMBEDDINGS + ATTENTION,
    rules_of_layer=layer_rules(SHARED),
    config_map=SIZES,
    spellings=SPELLINGS,
    arguments={**LATENT, **ROUTER_ARGUMENTS, "moe_router_pre_softmax": True},
    required={"hidden_act": "silu", "norm_topk_prob": False, "attention_bias": False, "mlp_bias": False},
    hf_defaults={
        **{"kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128, "topk_method": "greedy"},
        **{"n_shared_experts": 2, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0},
    },
    options={"router_group_experts": 1, **EPSILON},
    adjust=softmax_arguments,
    models="DeepSeek-V2, DeepSeek-V2-Lite",
    refused="`attention_bias`, `mlp_bias`, `norm_topk_prob`",
)
