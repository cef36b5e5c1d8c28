"""What mixtures of experts of 2025 share: dense layers first, experts that every token goes to, biased routers.

Keys of config.json are DeepSeek's, which GLM, dots and others took over.
"""

from collections.abc import Callable
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import HFConfig
from megatron_mixcpt.conversion.architectures.llama import ENGINE, HF
from megatron_mixcpt.conversion.architectures.mixtral import ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.qwen3_moe import EXPERTS, experts_or_mlp
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

EXPERT_SPELLINGS = {"n_routed_experts": "num_local_experts"}


def shared_expert_rules(name: str) -> tuple[Rule, ...]:
    """The experts that every token goes to, one MLP here and in transformers, whose name there is given."""
    hf = f"{HF}mlp.{name}."
    return (
        MergeGateUp(ENGINE_SHARED + "linear_fc1.weight", hf + "gate_proj.weight", hf + "up_proj.weight", "shared_ffn"),
        Rename(ENGINE_SHARED + "linear_fc2.weight", hf + "down_proj.weight", ("hidden", "shared_ffn"), split=1),
    )


GATED_SHARED_EXPERT: tuple[Rule, ...] = (
    *shared_expert_rules("shared_expert"),
    Rename(ENGINE_SHARED + "gate_weight", HF + "mlp.shared_expert_gate.weight", ("one", "hidden")),
)
"""One that every token goes to, whose output goes through a gate: Qwen2-MoE, Qwen3-Next."""


def layers_after_dense(config: HFConfig) -> list[int]:
    """1 for layers with experts, 0 for the first ``first_k_dense_replace``, which have an MLP instead."""
    first = config.require("first_k_dense_replace")
    return [int(layer >= first) for layer in range(config.require("num_hidden_layers"))]


def dense_layers_first(experts: tuple[Rule, ...]) -> Callable[[HFConfig, int], tuple[Rule, ...]]:
    """``Architecture.rules_of_layer`` of models with such layers; ``experts`` are the rules beside the experts' own."""
    return experts_or_mlp(EXPERTS + experts, layers_after_dense)


def mixture_arguments(config: HFConfig) -> dict[str, Any]:
    """The engine's arguments of the layers that have experts, of the shared ones and of the weights' scale."""
    return {
        "moe_layer_freq": layers_after_dense(config),
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
