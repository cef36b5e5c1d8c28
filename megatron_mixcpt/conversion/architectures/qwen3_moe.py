"""Qwen3-MoE: Qwen3's attention and a mixture of small experts in every layer."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF
from megatron_mixcpt.conversion.architectures.mixtral import ENGINE_EXPERT, ROUTER_ARGUMENTS
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

HF_EXPERT = HF + "mlp.experts.{expert}."

EXPERTS: tuple[Rule, ...] = (
    Rename(ENGINE + "pre_mlp_layernorm.weight", HF + "post_attention_layernorm.weight", ("hidden",)),
    Rename(ENGINE + "mlp.router.weight", HF + "mlp.gate.weight", ("experts", "hidden")),
    MergeGateUp(
        ENGINE_EXPERT + "linear_fc1.weight", HF_EXPERT + "gate_proj.weight", HF_EXPERT + "up_proj.weight", "expert_ffn"
    ),
    Rename(ENGINE_EXPERT + "linear_fc2.weight", HF_EXPERT + "down_proj.weight", ("hidden", "expert_ffn"), split=1),
)


def softmax_before_choice(config: HFConfig) -> dict[str, bool]:
    """Without renormalisation, an expert's weight is its softmax over all experts, taken before the best are chosen."""
    return {"moe_router_pre_softmax": not config.get("norm_topk_prob", False)}


QWEN3_MOE = Architecture(
    name="Qwen3MoeForCausalLM",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B",
    refused="dense layers between (`mlp_only_layers`, `decoder_sparse_step`)",
    name_map=EMBEDDINGS + ATTENTION + QK_NORM + EXPERTS,
    config_map={
        "num_local_experts": "num_experts",
        "num_experts_per_tok": "moe_router_topk",
        "moe_intermediate_size": "moe_ffn_hidden_size",
    },
    spellings={"num_experts": "num_local_experts"},
    arguments={**ROUTER_ARGUMENTS, "qk_layernorm": True},
    biases={"attention_bias": ATTENTION_BIAS},
    required={"hidden_act": "silu", "decoder_sparse_step": 1, "mlp_only_layers": []},
    hf_defaults={"use_sliding_window": False, "sliding_window": 4096},
    windows=WindowRules(every_layer),
    adjust=softmax_before_choice,
)
