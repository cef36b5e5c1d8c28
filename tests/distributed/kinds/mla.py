"""Mixtures of experts with sigmoid routers, shared experts and latent attention.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import Glm4MoeConfig, PreTrainedConfig

from tests.distributed.tiny_shape import SHAPE

MIXTURE = {
    **{**SHAPE, "max_position_embeddings": 4096, "pad_token_id": None},
    **{"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_shared_experts": 1},
    **{"first_k_dense_replace": 1, "routed_scaling_factor": 1.5},
}


def glm4_moe() -> PreTrainedConfig:
    """GLM-4.5: biases and norms in attention; groups of which the engine would score each by one expert, not two."""
    options = {"use_qk_norm": True, "attention_bias": True, "n_group": 4, "topk_group": 3, "n_shared_experts": 2}
    return Glm4MoeConfig(**MIXTURE | options, head_dim=8)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {"glm4-moe": glm4_moe}
