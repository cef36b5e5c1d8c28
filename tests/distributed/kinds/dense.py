"""Dense families whose layers differ from Llama's by norms, activations, biases and where norms stand.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import (
    ApertusConfig,
    ArceeConfig,
    CohereConfig,
    Ernie4_5Config,
    Exaone4Config,
    Glm4Config,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    SeedOssConfig,
    Starcoder2Config,
)

from tests.distributed.tiny_shape import SHAPE

DENSE = {**SHAPE, "max_position_embeddings": 4096, "pad_token_id": None}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 16}


def olmo2() -> PreTrainedConfig:
    """Norms after the branches only, and over all heads."""
    return Olmo2Config(**DENSE)


def olmo3() -> PreTrainedConfig:
    """Windows, and in the layer without one yarn, whose attention factor the others do not have."""
    ropes = {"sliding_attention": {"rope_type": "default", "rope_theta": 5e5}, "full_attention": YARN}
    types = ["sliding_attention"] * 2 + ["full_attention", "sliding_attention"]
    return Olmo3Config(**DENSE, sliding_window=12, layer_types=types, rope_parameters=ropes)


def glm4() -> PreTrainedConfig:
    """Sandwich norms, fused gate and up, half of the channels rotating in pairs, biases of query, key and value."""
    return Glm4Config(**DENSE, head_dim=8, attention_bias=True)


def seed_oss() -> PreTrainedConfig:
    """Biases of query, key and value."""
    return SeedOssConfig(**DENSE, head_dim=8)


def seed_oss_biases() -> PreTrainedConfig:
    """Every bias but those of query, key and value."""
    return SeedOssConfig(**DENSE, head_dim=8, attention_bias=False, attention_out_bias=True, mlp_bias=True)


def ernie4_5() -> PreTrainedConfig:
    """All channels rotating in pairs, tied embeddings, and a bias in every linear layer."""
    return Ernie4_5Config(**DENSE | {"tie_word_embeddings": True}, head_dim=8, use_bias=True)


def exaone4() -> PreTrainedConfig:
    """Windows, and no rotation in the layer without one, where the others have yarn's attention factor."""
    options = {"sliding_window": 12, "sliding_window_pattern": 3, "rope_parameters": YARN}
    return Exaone4Config(**DENSE, **options)


def exaone4_full() -> PreTrainedConfig:
    """EXAONE 4.0 1.2B: without windows, all layers rotate."""
    return Exaone4Config(**DENSE, sliding_window=None, layer_types=["full_attention"] * 4)


def cohere() -> PreTrainedConfig:
    """Parallel layers, LayerNorm without bias, scaled logits, channels rotating in pairs, and biases in attention."""
    return CohereConfig(**DENSE | {"tie_word_embeddings": True}, logit_scale=0.25, attention_bias=True)


def starcoder2() -> PreTrainedConfig:
    """LayerNorm, gelu without gate, a bias in every layer, windows and tied embeddings."""
    return Starcoder2Config(**DENSE | {"tie_word_embeddings": True}, sliding_window=12)


def nemotron() -> PreTrainedConfig:
    """LayerNorm around one, squared ReLU without gate, half of the channels rotating, and every bias."""
    return NemotronConfig(**DENSE, head_dim=8, attention_bias=True, mlp_bias=True)


def arcee() -> PreTrainedConfig:
    """Squared ReLU without gate."""
    return ArceeConfig(**DENSE)


def apertus() -> PreTrainedConfig:
    """xIELU with its learned numbers, QK norms, and biases in attention."""
    return ApertusConfig(**DENSE, attention_bias=True)


def phi4_mini() -> PreTrainedConfig:
    """Two scales for each frequency of the channels that rotate, tied embeddings, and a window."""
    factors = {"short_factor": [1.0, 1.1, 1.2], "long_factor": [1.5, 2.5, 3.5]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **factors}
    options = {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True, "sliding_window": 21}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    return Phi3Config(**DENSE | options | lengths, rope_parameters=rope)


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "olmo2": olmo2,
    "olmo3": olmo3,
    "glm4": glm4,
    "seed-oss": seed_oss,
    "seed-oss-biases": seed_oss_biases,
    "ernie4-5": ernie4_5,
    "exaone4": exaone4,
    "exaone4-full": exaone4_full,
    "cohere": cohere,
    "starcoder2": starcoder2,
    "nemotron": nemotron,
    "arcee": arcee,
    "apertus": apertus,
    "phi4-mini": phi4_mini,
}
