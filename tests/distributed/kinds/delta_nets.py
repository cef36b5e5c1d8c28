"""Families with gated delta nets beside attention.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, Qwen3_5MoeTextConfig, Qwen3_5TextConfig, Qwen3NextConfig

from tests.distributed.tiny_shape import SHAPE

DELTA_NETS: dict[str, Any] = {
    **{"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 16, "linear_value_head_dim": 12},
    **{"linear_conv_kernel_dim": 3, "head_dim": 16, "max_position_embeddings": 4096},
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
}
"""Two heads of values for each of keys, and layers in no regular order; a quarter of attention's channels rotates."""


def qwen3_5() -> PreTrainedConfig:
    """Dense; attention in one layer of four."""
    return Qwen3_5TextConfig(**SHAPE, **DELTA_NETS)


EXPERTS: dict[str, Any] = {
    **{"num_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
}


def qwen3_next() -> PreTrainedConfig:
    """Four experts of which each token takes two, and one that every token takes, times a gate."""
    return Qwen3NextConfig(**SHAPE, **DELTA_NETS, **EXPERTS)


def qwen3_5_moe() -> PreTrainedConfig:
    """The same experts with Qwen3.5's projections; there is no MLP whose size could be given."""
    shape = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    return Qwen3_5MoeTextConfig(**shape, **DELTA_NETS, **EXPERTS)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3-5": qwen3_5,
    "qwen3-next": qwen3_next,
    "qwen3-5-moe": qwen3_5_moe,
}
