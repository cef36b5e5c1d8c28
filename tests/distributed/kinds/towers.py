"""Multimodal models, of which the language model is trained, and the text models that they hold.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable
from typing import Any

from transformers import Mistral3Config, MistralConfig, PreTrainedConfig

from tests.distributed.tiny_shape import SHAPE

VISION: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 16, "patch_size": 4},
}


def mistral3() -> PreTrainedConfig:
    """Mistral Small 3.1: Mistral beside a vision tower; the embeddings are not tied."""
    text = MistralConfig(**SHAPE, max_position_embeddings=4096, sliding_window=None)
    return Mistral3Config(
        text_config=text,
        vision_config={"model_type": "pixtral", **VISION},
        tie_word_embeddings=False,
        architectures=["Mistral3ForConditionalGeneration"],
    )


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {"mistral3": mistral3}
