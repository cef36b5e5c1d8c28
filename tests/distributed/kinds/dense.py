"""Dense families whose layers differ from Llama's by norms, activations, biases and where norms stand.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import Olmo2Config, Olmo3Config, PreTrainedConfig

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


KINDS: dict[str, Callable[[], PreTrainedConfig]] = {"olmo2": olmo2, "olmo3": olmo3}
