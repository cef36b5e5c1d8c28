"""Families with multipliers and softcaps: Gemma, Granite, Cohere 2."""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
