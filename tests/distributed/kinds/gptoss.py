"""Mixtures of experts whose experts have biases, shared parts or dense layers between them."""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
