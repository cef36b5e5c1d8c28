"""Mixtral: Llama's attention and a mixture of experts, whose router takes the softmax of the chosen experts' scores."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, ENGINE, HF
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

ENGINE_EXPERT, HF_EXPERT = ENGINE + "mlp.experts.{expert}.", HF + "block_sparse_moe.experts.{expert}."

NORM_BEFORE_ROUTER = Rename(ENGINE + "pre_mlp_layernorm.weight", HF + "post_attention_layernorm.weight", ("hidden",))

EXPERTS: tuple[Rule, ...] = (
    NORM_BEFORE_ROUTER,
    Rename(ENGINE + "mlp.router.weight", HF + "block_sparse_moe.gate.weight", ("experts", "hidden")),
    MergeGateUp(ENGINE_EXPERT + "linear_fc1.weight", HF_EXPERT + "w1.weight", HF_EXPERT + "w3.weight", "expert_ffn"),
    Rename(ENGINE_EXPERT + "linear_fc2.weight", HF_EXPERT + "w2.weight", ("hidden", "expert_ffn"), split=1),
)

# What every mixture of experts here has in common, in the engine's terms.
ROUTER_ARGUMENTS = {
    "moe_router_score_function": "softmax",
    "moe_router_pre_softmax": False,
    "moe_router_topk_scaling_factor": None,
    "moe_router_enable_expert_bias": False,
    "moe_router_num_groups": None,
    "moe_layer_freq": 1,
}

MIXTRAL = Architecture(
    name="MixtralForCausalLM",
    models="Mixtral 8x7B, 8x22B",
    name_map=EMBEDDINGS + ATTENTION + EXPERTS,
    config_map={"num_local_experts": "num_experts", "num_experts_per_tok": "moe_router_topk"},
    arguments=ROUTER_ARGUMENTS,
    required={"hidden_act": "silu"},
    windows=WindowRules(every_layer),
    hf_defaults={"rope_theta": 1e6},
)
