"""Mixtures of experts with sigmoid routers, shared experts and latent attention.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import DeepseekV2Config, DeepseekV3Config, Glm4MoeConfig, PreTrainedConfig

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


LATENT = {
    **MIXTURE,
    **{"num_key_value_heads": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5},
}
YARN = {
    **{"rope_type": "yarn", "factor": 40.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    **{"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1},
}


def deepseek_v3() -> PreTrainedConfig:
    """Latent queries too, yarn whose factor of cosine and sine is not one, the published model's choice of groups."""
    options = {"q_lora_rank": 24, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "rms_norm_eps": 1e-5}
    return DeepseekV3Config(**LATENT | options, rope_parameters=YARN)


def deepseek_v2() -> PreTrainedConfig:
    """DeepSeek-V2-Lite: no latent queries, weights as the softmax over all experts has them."""
    return DeepseekV2Config(**LATENT, q_lora_rank=None, rope_parameters=YARN | {"mscale": 0.7})


def deepseek_v2_groups() -> PreTrainedConfig:
    """DeepSeek-V2: a group of experts scores as its best one."""
    options = {"q_lora_rank": 24, "n_group": 4, "topk_group": 3, "topk_method": "group_limited_greedy"}
    return DeepseekV2Config(**LATENT | options)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "glm4-moe": glm4_moe,
    "deepseek-v3": deepseek_v3,
    "deepseek-v2": deepseek_v2,
    "deepseek-v2-groups": deepseek_v2_groups,
}
