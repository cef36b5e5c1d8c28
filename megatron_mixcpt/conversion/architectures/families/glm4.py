"""GLM-4: norms before and after each branch, fused gate and up, and half of a head's channels rotating in pairs."""

from megatron_mixcpt.conversion.architectures.families.phi3 import FUSED_GATE_UP_RULE
from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP, QKV_BIAS
from megatron_mixcpt.conversion.architectures.norm_rules import post_norms
from megatron_mixcpt.conversion.architectures.rope import RopeRules
from megatron_mixcpt.conversion.architectures.rules import Rename

GLM4 = Architecture(
    name="Glm4ForCausalLM",
    name_map=(
        *(*EMBEDDINGS, *ATTENTION, *(rule for rule in MLP if isinstance(rule, Rename)), FUSED_GATE_UP_RULE),
        *post_norms("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    biases={"attention_bias": QKV_BIAS},
    arguments={"rotary_interleaved": True},
    options={"post_norms": True},
    required={"hidden_act": "silu"},
    hf_defaults={"head_dim": 128, "num_key_value_heads": 2, "attention_bias": True, "partial_rotary_factor": 0.5},
    rope=RopeRules(rotates_partly=True),
    models="GLM-4-0414 9B and 32B",
)
