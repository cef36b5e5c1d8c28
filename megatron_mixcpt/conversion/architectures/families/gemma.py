"""Gemma 2 and 3: norms around attention and MLP whose weights are stored less one, scaled embeddings, and windows.

Gemma 2 caps scores and logits. Gemma 3 has norms on query and key instead, and two rotary embeddings.
"""

from dataclasses import replace
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.norm_rules import post_norms, pre_norms, without_norms
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.rope import RopeRules, parameters_by_type
from megatron_mixcpt.conversion.architectures.windows import FULL, SLIDING, WindowRules, all_but_every, by_pattern

# What Gemma2Config and Gemma3TextConfig assume; Gemma 3's config.json names little else than what differs from it.
SIZES = {
    **{"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "head_dim": 256},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096, "tie_word_embeddings": True},
    **{"rms_norm_eps": 1e-6, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256},
}


def scales(config: HFConfig) -> dict[str, Any]:
    """The embedding is multiplied by sqrt(hidden_size) in its own dtype, scores by 1 / sqrt(query_pre_attn_scalar)."""
    multiplier = config.require("hidden_size") ** 0.5
    return {"embedding_multiplier": multiplier, "attention_multiplier": config.require("query_pre_attn_scalar") ** -0.5}


GEMMA2 = Architecture(
    name="Gemma2ForCausalLM",
    name_map=(
        *(*EMBEDDINGS, *without_norms(ATTENTION + MLP)),
        *pre_norms("input_layernorm", "pre_feedforward_layernorm"),
        *post_norms("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    biases={"attention_bias": ATTENTION_BIAS},
    arguments={"layernorm_zero_centered_gamma": True},
    options={"post_norms": True, "activation": "gelu_pytorch_tanh", "rounds_embedding_multiplier": True},
    option_map={"attn_logit_softcapping": "attention_softcap", "final_logit_softcapping": "final_softcap"},
    adjust_options=scales,
    required={"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False},
    hf_defaults={
        **SIZES,
        **{"vocab_size": 256000, "max_position_embeddings": 8192},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    },
    windows=WindowRules(all_but_every(2), has_layer_types=True),
    models="Gemma 2 2B to 27B",
    refused="`use_bidirectional_attention`; with Transformer Engine `attn_logit_softcapping`; `--attention-dropout`",
)

GEMMA3 = replace(
    GEMMA2,
    name="Gemma3ForCausalLM",
    name_map=GEMMA2.name_map + QK_NORM,
    arguments={**GEMMA2.arguments, "qk_layernorm": True},
    option_map={"final_logit_softcapping": "final_softcap"},
    # transformers' Gemma3Attention does not apply the cap that its configuration has.
    required={**GEMMA2.required, "attn_logit_softcapping": None},
    hf_defaults={**SIZES, "vocab_size": 262208, "max_position_embeddings": 131072, "sliding_window_pattern": 6},
    rope=RopeRules(by_type=parameters_by_type({FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)})),
    windows=WindowRules(by_pattern, has_layer_types=True),
    models="Gemma 3 270M and 1B, and the language models of 4B to 27B",
    refused="`use_bidirectional_attention`, `attn_logit_softcapping`; rotary embeddings that depend on the length",
)
