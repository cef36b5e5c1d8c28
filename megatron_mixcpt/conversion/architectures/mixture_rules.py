"""What mixtures of experts of 2025 share: dense layers first, experts that every token goes to, biased routers.

Keys of config.json are DeepSeek's, which GLM, dots and others took over.
"""

from collections.abc import Callable
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import HFConfig
from megatron_mixcpt.conversion.architectures.llama import ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.mixtral import ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERTS
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, Rename, Rule

ENGINE_SHARED = ENGINE + "mlp.shared_experts."

ROUTER_BIAS: tuple[Rule, ...] = (
    Rename(ENGINE + "mlp.router.expert_bias", HF + "mlp.gate.e_score_correction_bias", ("experts",)),
)

SIGMOID_ROUTER = {
    **ROUTER_ARGUMENTS,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
}

EXPERT_SIZES = {
    "num_local_experts": "num_experts",
    "num_experts_per_tok": "moe_router_topk",
    "moe_intermediate_size": "moe_ffn_hidden_size",
}
EXPERT_SPELLINGS = {"n_routed_experts": "num_local_experts"}


def shared_expert_rules(name: str) -> tuple[Rule, ...]:
    """The experts that every token goes to, one MLP here and in transformers, whose name there is given."""
    hf = f"{HF}mlp.{name}."
    return (
        MergeGateUp(ENGINE_SHARED + "linear_fc1.weight", hf + "gate_proj.weight", hf + "up_proj.weight", "shared_ffn"),
        Rename(ENGINE_SHARED + "linear_fc2.weight", hf + "down_proj.weight", ("hidden", "shared_ffn"), split=1),
    )


def dense_layers_first(experts: tuple[Rule, ...]) -> Callable[[HFConfig, int], tuple[Rule, ...]]:
    """``Architecture.rules_of_layer`` of models whose first ``first_k_dense_replace`` layers have an MLP instead."""

    def rules_of_layer(config: HFConfig, layer: int) -> tuple[Rule, ...]:
        return MLP if layer < config.require("first_k_dense_replace") else EXPERTS + experts

    return rules_of_layer


def mixture_arguments(config: HFConfig) -> dict[str, Any]:
    """The engine's arguments of the layers that have experts, of the shared ones and of the weights' scale."""
    first = config.require("first_k_dense_replace")
    return {
        "moe_layer_freq": [int(layer >= first) for layer in range(config.require("num_hidden_layers"))],
        "moe_shared_expert_intermediate_size": config.require("n_shared_experts")
        * config.require("moe_intermediate_size"),
        "moe_router_topk_scaling_factor": config.require("routed_scaling_factor"),
        "moe_router_dtype": "fp32",  # as in transformers, whatever the weights are
        **group_arguments(config),
    }


def group_arguments(config: HFConfig) -> dict[str, Any]:
    """Experts are chosen from the best ``topk_group`` of ``n_group`` groups; there are none where all groups serve."""
    groups, chosen = config.get("n_group", 1), config.get("topk_group", 1)
    experts, per_token = config.require("num_local_experts"), config.require("num_experts_per_tok")
    if groups == chosen:
        return {"moe_router_num_groups": None, "moe_router_group_topk": None}
    if chosen > groups or experts % groups or per_token > chosen * (experts // groups):
        raise config.refuse(
            "n_group",
            groups,
            f"topk_group {chosen} of equal groups of n_routed_experts {experts} must offer num_experts_per_tok "
            f"{per_token}",
        )
    return {"moe_router_num_groups": groups, "moe_router_group_topk": chosen}
