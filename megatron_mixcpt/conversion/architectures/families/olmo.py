"""OLMo 2 and 3: norms after attention and MLP only, and over all heads of query and key.

OLMo 3 has a window in three layers of four, and scales the rotary embedding in the others alone.
"""

from dataclasses import replace

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.norm_rules import post_norms, without_norms
from megatron_mixcpt.conversion.architectures.rope import RopeRules, parameters_by_type
from megatron_mixcpt.conversion.architectures.rules import Rename
from megatron_mixcpt.conversion.architectures.windows import FULL, SLIDING, WindowRules, all_but_every

NORMS_OVER_HEADS = (
    Rename(ENGINE + "self_attention.q_layernorm.weight", HF + "self_attn.q_norm.weight", ("query",)),
    Rename(ENGINE + "self_attention.k_layernorm.weight", HF + "self_attn.k_norm.weight", ("key",)),
)

OLMO2 = Architecture(
    name="Olmo2ForCausalLM",
    name_map=(
        *(*EMBEDDINGS, *without_norms(ATTENTION + MLP), *NORMS_OVER_HEADS),
        *post_norms("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    biases={"attention_bias": ATTENTION_BIAS},
    arguments={"qk_layernorm": True},
    options={"pre_norms": False, "post_norms": True, "qk_norm_over_heads": True},
    required={"hidden_act": "silu"},
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    models="OLMo 2 1B to 32B",
)

OLMO3 = replace(
    OLMO2,
    name="Olmo3ForCausalLM",
    hf_defaults={**OLMO2.hf_defaults, "sliding_window": 4096},
    # Olmo3Config reads an older file's rope_theta for full attention, and not for windows.
    rope=RopeRules(by_type=parameters_by_type({FULL: ("rope_theta", 5e5), SLIDING: (None, 5e5)})),
    windows=WindowRules(all_but_every(4), has_layer_types=True),
    models="OLMo 3 7B and 32B",
    refused="rotary embeddings that depend on the length",
)
