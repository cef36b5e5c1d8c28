"""Multipliers of embeddings (Gemma, Granite) and of attention's scores (Gemma, Granite), at the engine's own modules.

    first layer's input = multiplier * embedding        scores = multiplier * q . k

That of the logits belongs to the losses (``losses/logit_scaling.py``), that of the residual to ``branches.py``.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_mixcpt.models.options import options_of


def attention_scale(config: TransformerConfig) -> float:
    """What the scores q . k of a model are multiplied by, apart from a factor of its rotary embedding."""
    multiplier = options_of(config).attention_multiplier
    return 1.0 / math.sqrt(config.kv_channels) if multiplier is None else multiplier


def multiply_embeddings(model: GPTModel) -> None:
    """Make the embedding layer of a model's first stage, in place, multiply what it looks up; its weight stays.

    An output layer that is tied to it is not affected.
    """
    options = options_of(model.config)
    if model.pre_process and options.embedding_multiplier != 1.0:
        hook = _multiplying(options.embedding_multiplier, options.rounds_embedding_multiplier)
        model.embedding.word_embeddings.register_forward_hook(hook)


def _multiplying(multiplier: float, rounds: bool) -> Callable[[torch.nn.Module, tuple, Tensor], Tensor]:
    def hook(module: torch.nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return output * (_rounded(multiplier, output.dtype) if rounds else multiplier)

    return hook


@cache
def _rounded(number: float, dtype: torch.dtype) -> float:
    """As transformers rounds it: to float32 first."""
    return torch.tensor(number, dtype=torch.float32, device="cpu").to(dtype).item()
