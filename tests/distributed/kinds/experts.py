"""Mixtures of experts whose experts have biases, shared parts or dense layers between them.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import GptOssConfig, PreTrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from tests.distributed.tiny_shape import SHAPE

ALL = {**SHAPE, "max_position_embeddings": 4096, "pad_token_id": None}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "truncate": False}


def gpt_oss() -> PreTrainedConfig:
    """Windows in every second layer, and an activation that is clamped where values are not small."""
    rope = {**YARN, "original_max_position_embeddings": 16}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 0.5}
    return GptOssConfig(**ALL, **experts, head_dim=8, sliding_window=12, rope_parameters=rope)


SPARSE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}


def qwen2_moe() -> PreTrainedConfig:
    """A gated shared expert, an MLP in the third layer, and weights as the softmax over all experts has them."""
    return Qwen2MoeConfig(**ALL, **SPARSE, shared_expert_intermediate_size=40, mlp_only_layers=[2])


def qwen3_moe_dense_between() -> PreTrainedConfig:
    """Experts in every second layer."""
    return Qwen3MoeConfig(**ALL, **SPARSE, head_dim=8, norm_topk_prob=True, decoder_sparse_step=2)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt-oss": gpt_oss,
    "qwen2-moe": qwen2_moe,
    "qwen3-moe-dense-between": qwen3_moe_dense_between,
}
