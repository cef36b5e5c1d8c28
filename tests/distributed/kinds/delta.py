"""Families with gated delta nets beside attention."""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
