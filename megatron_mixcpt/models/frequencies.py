"""Frequencies of a rotary embedding, from transformers' own functions."""

import torch
from torch import Tensor

from megatron_mixcpt.models.options import Rope


def is_simple(rope: Rope) -> bool:
    """Whether the engine's formula is transformers' own: its import takes seconds, which most models need not wait."""
    return rope.kind == "default" or rope.is_engine_llama3


def hf_frequencies(rope: Rope, length: int | None = None) -> tuple[Tensor, float]:
    """Frequencies in radians a token, float32 [d / 2] on the CPU, and the attention factor, as transformers has them.

    Args:
        rope: of any type but ``default``, which is not among transformers' shared functions.
        length: tokens of the sequence, for types that depend on it; None is a short one.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RotaryEmbeddingConfigMixin

    config = RotaryEmbeddingConfigMixin()
    config.rope_parameters = dict(rope.parameters)
    config.max_position_embeddings = rope.max_position_embeddings
    config.head_dim = rope.head_dim
    config.hidden_size, config.num_attention_heads = rope.head_dim, 1  # read as a default for head_dim
    return ROPE_INIT_FUNCTIONS[rope.kind](config, torch.device("cpu"), seq_len=length)


def attention_factor(rope: Rope) -> float:
    """What cosine and sine are multiplied by; it does not depend on the length."""
    return 1.0 if is_simple(rope) else hf_frequencies(rope)[1]
