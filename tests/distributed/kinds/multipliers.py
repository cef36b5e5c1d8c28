"""Families with multipliers and softcaps: Gemma, Granite, Cohere 2. Caps are near what they cap, so that they show."""

from collections.abc import Callable

from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteMoeConfig,
    PreTrainedConfig,
)

from tests.distributed.tiny_shape import SHAPE

LENGTH = {"max_position_embeddings": 4096, "pad_token_id": None}
WINDOWS = {"sliding_window": 12, "head_dim": 8, "query_pre_attn_scalar": 24}


def gemma2() -> PreTrainedConfig:
    """Windows in every second layer, and caps of scores and logits."""
    return Gemma2Config(**SHAPE, **LENGTH, **WINDOWS, attn_logit_softcapping=0.5, final_logit_softcapping=1.0)


def gemma2_bias() -> PreTrainedConfig:
    """Biases in attention, embeddings that are not tied, and no cap of scores."""
    options = {"attention_bias": True, "tie_word_embeddings": False, "attn_logit_softcapping": None}
    return Gemma2Config(**gemma2().to_dict() | options)


def gemma3() -> PreTrainedConfig:
    """Windows in three layers, and in the other one another base and scaling of the rotary embedding."""
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    }
    types = ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]
    return Gemma3TextConfig(**SHAPE, **LENGTH, **WINDOWS, layer_types=types, rope_parameters=ropes)


MULTIPLIERS = {
    **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.3, "logits_scaling": 7.0}
}


def granite() -> PreTrainedConfig:
    """All four multipliers."""
    return GraniteConfig(**SHAPE, **LENGTH, **MULTIPLIERS)


def granite_moe() -> PreTrainedConfig:
    """The same with four experts, of which each token takes two."""
    return GraniteMoeConfig(**SHAPE, **LENGTH, **MULTIPLIERS, num_local_experts=4, num_experts_per_tok=2)


def cohere2() -> PreTrainedConfig:
    """Windows in three layers; the other one without a rotary embedding."""
    return Cohere2Config(**SHAPE, **LENGTH, sliding_window=12, sliding_window_pattern=3, logit_scale=3.0)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma2": gemma2,
    "gemma2-bias": gemma2_bias,
    "gemma3": gemma3,
    "granite": granite,
    "granite-moe": granite_moe,
    "cohere2": cohere2,
}
