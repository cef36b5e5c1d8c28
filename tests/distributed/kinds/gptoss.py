"""Mixtures of experts whose experts have biases, shared parts or dense layers between them.

Built on ``tiny_shape.SHAPE``; listed in ``tiny_models.KINDS``.
"""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
