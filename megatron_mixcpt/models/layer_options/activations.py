"""Activations of an MLP beyond those that the engine's arguments name, by their names in transformers."""

import torch
from megatron.core.activations import quick_gelu, squared_relu
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import gelu

from megatron_mixcpt.models.options import ModelOptions


def gelu_pytorch_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): Gemma and StarCoder2."""
    return gelu(x, approximate="tanh")


ACTIVATIONS = {
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_pytorch_tanh,
    "quick_gelu": quick_gelu,
    "relu2": squared_relu,
    "silu": torch.nn.functional.silu,
}
"""As transformers' ``ACT2FN`` computes them; whether a gate is multiplied on is an argument of the engine."""


def configure_activation(config: TransformerConfig, options: ModelOptions) -> None:
    """Put the activation of the options on the engine's configuration, in place; nothing where they name none.

    The engine's fused kernels are for other activations (its ``gelu`` in one is tanh's), so they are switched off.
    ``xielu`` is a module, which the engine's MLP takes from the layer specs where it is told to take one.
    """
    if options.activation is None:
        return
    config.bias_activation_fusion = False
    if options.activation == "xielu":
        config.use_te_activation_func = True
    else:
        config.activation_func = ACTIVATIONS[options.activation]
