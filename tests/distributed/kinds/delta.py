"""Families with gated delta nets beside attention.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig, Qwen3_5TextConfig, Qwen3NextConfig

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


def qwen3_next(num_chosen: int = 2) -> PreTrainedConfig:
    """Four experts of which each token takes two, and one that every token takes, times a gate."""
    experts = {"num_experts": 4, "num_experts_per_tok": num_chosen}
    sizes = {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    return Qwen3NextConfig(**SHAPE, **DELTA_NETS, **experts, **sizes)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {"qwen3-5": qwen3_5, "qwen3-next": qwen3_next}
