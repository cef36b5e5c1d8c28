"""Mixtures of experts with sigmoid routers, shared experts and latent attention."""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
