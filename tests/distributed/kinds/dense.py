"""Dense families whose layers differ from Llama's by norms, activations, biases and where norms stand."""

from collections.abc import Callable

from transformers import PreTrainedConfig

KINDS: dict[str, Callable[[], PreTrainedConfig]] = {}
