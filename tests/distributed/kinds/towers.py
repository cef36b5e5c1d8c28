"""Multimodal models, of which the language model is trained, and the text models that they hold.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3Config,
    Ministral3Config,
    MinistralConfig,
    Mistral3Config,
    MistralConfig,
    PreTrainedConfig,
    Qwen3_5Config,
)

from tests.distributed.kinds import delta_nets, multipliers
from tests.distributed.tiny_shape import SHAPE

VISION: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4},
}


MINISTRAL: dict[str, Any] = {
    **SHAPE,
    "head_dim": 8,
    "pad_token_id": None,
    "max_position_embeddings": 256,
    "rope_parameters": {
        **{"rope_type": "yarn", "factor": 16.0, "rope_theta": 1e6, "original_max_position_embeddings": 16},
        **{"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0, "llama_4_scaling_beta": 0.1},
    },
}


def ministral() -> PreTrainedConfig:
    """Windows in three layers of four, shorter than the sequences."""
    types = ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
    return MinistralConfig(**SHAPE, head_dim=8, max_position_embeddings=4096, sliding_window=12, layer_types=types)


def mistral3() -> PreTrainedConfig:
    """Mistral Small 3.1: Mistral beside a vision tower; the embeddings are not tied."""
    text = MistralConfig(**SHAPE, max_position_embeddings=4096, sliding_window=None)
    return Mistral3Config(
        text_config=text,
        vision_config={"model_type": "pixtral", **VISION},
        tie_word_embeddings=False,
        architectures=["Mistral3ForConditionalGeneration"],
    )


def ministral3() -> PreTrainedConfig:
    """Queries that grow from the 17th token on, yarn, and wider heads."""
    return Ministral3Config(**MINISTRAL)


def ministral3_tower() -> PreTrainedConfig:
    """Ministral 3 as it is published, beside a vision tower."""
    return Mistral3Config(
        text_config=Ministral3Config(**MINISTRAL),
        vision_config={"model_type": "pixtral", **VISION},
        tie_word_embeddings=True,
        architectures=["Mistral3ForConditionalGeneration"],
    )


def gemma3_tower() -> PreTrainedConfig:
    """Gemma 3 4B: Gemma 3 beside a vision tower; the embeddings are tied."""
    return Gemma3Config(
        text_config=multipliers.KINDS["gemma3"]().to_dict(),
        vision_config=VISION,
        mm_tokens_per_image=4,
        architectures=["Gemma3ForConditionalGeneration"],
    )


def qwen3_5_tower() -> PreTrainedConfig:
    """Qwen3.5: everything inside of one model, and an output layer beside it."""
    vision = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "patch_size")}
    return Qwen3_5Config(
        text_config=delta_nets.KINDS["qwen3-5"]().to_dict(),
        vision_config={**vision, "depth": 1, "num_heads": 2, "out_hidden_size": SHAPE["hidden_size"]},
        architectures=["Qwen3_5ForConditionalGeneration"],
    )


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "ministral": ministral,
    "ministral3": ministral3,
    "mistral3": mistral3,
    "ministral3-tower": ministral3_tower,
    "gemma3-tower": gemma3_tower,
    "qwen3-5-tower": qwen3_5_tower,
}
