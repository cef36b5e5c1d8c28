"""Phi-3, Phi-4 and Phi-4-mini: Llama's layers, stored with fused projections."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.rope import RopeRules
from megatron_mixcpt.conversion.architectures.rules import MergeGateUp, MergeQKV, Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

FUSED_QKV, FUSED_GATE_UP = HF + "self_attn.qkv_proj.weight", HF + "mlp.gate_up_proj.weight"

FUSED_GATE_UP_RULE = MergeGateUp(ENGINE + "mlp.linear_fc1.weight", FUSED_GATE_UP, FUSED_GATE_UP)
FUSED: tuple[Rule, ...] = (
    MergeQKV(ENGINE + "self_attention.linear_qkv.weight", FUSED_QKV, FUSED_QKV, FUSED_QKV),
    FUSED_GATE_UP_RULE,
)

PHI3 = Architecture(
    name="Phi3ForCausalLM",
    models="Phi-3, Phi-4, Phi-4-mini",
    refused="`attention_bias`, which transformers ignores",
    name_map=EMBEDDINGS + tuple(rule for rule in ATTENTION + MLP if isinstance(rule, Rename)) + FUSED,
    required={"hidden_act": "silu", "attention_bias": False},
    rope=RopeRules(
        types=("default", "longrope"), older_types={"su": "longrope", "yarn": "longrope"}, rotates_partly=True
    ),
    windows=WindowRules(every_layer),
    hf_defaults={"original_max_position_embeddings": 4096},
)
