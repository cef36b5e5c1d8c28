"""RMSNorm and LayerNorm that allow sequence parallelism, for layers without Transformer Engine.

The engine's own fallback, ``WrappedTorchNorm`` (megatron/core/transformer/torch_norm.py), refuses sequence parallelism
because its weights are not marked as having gradients that are partial sums over the tensor-parallel ranks. These are.
"""

from collections.abc import Callable

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import options_of
from megatron_mixcpt.models.parameter_device import parameter_device


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, with Hugging Face's rounding.

    As in transformers' LlamaRMSNorm the quotient is computed in float32, rounded to the input's dtype, and then
    multiplied by the weight (``torch.nn.RMSNorm`` multiplies before it rounds, which differs in bfloat16).
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(torch.ones, hidden_size, config)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size], any floating dtype; the result has the promoted dtype of x and the weight."""
        return rms_norm(x, self.weight.shape, eps=self.eps) * self.weight


class ZeroCenteredRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dimension, the weight being its distance from one.

    As in transformers' GemmaRMSNorm, and so of Gemma 2 and 3, Qwen3-Next and Qwen3.5, all of it is computed in float32
    and only the product is rounded: a weight in bfloat16 keeps the digits that one plus it would lose.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(torch.zeros, hidden_size, config)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size], any floating dtype, which is the result's."""
        return rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).type_as(x)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension, computed in float32.

    A model whose options say so (``norm_bias``: Command-R) has no bias.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = _parameter(torch.ones, hidden_size, config)
        has_bias = options_of(config).norm_bias
        self.bias = _parameter(torch.zeros, hidden_size, config) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size], of the weight's dtype."""
        return layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class ZeroCenteredLayerNorm(LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * (1 + weight) + bias over the last dimension.

    As in transformers' NemotronLayerNorm1P, one plus the weight is rounded to the weight's dtype.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, hidden_size, eps)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden_size], of the weight's dtype."""
        return layer_norm(x, self.weight.shape, 1.0 + self.weight, self.bias, self.eps)


_NORMS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "RMSNorm": (RMSNorm, ZeroCenteredRMSNorm),
    "LayerNorm": (LayerNorm, ZeroCenteredLayerNorm),
}


def build_norm(*, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: object) -> nn.Module:
    """The norm that ``config.normalization`` and ``config.layernorm_zero_centered_gamma`` name.

    The arguments are those that the engine's layer specs give. Raises ConfigError for another normalization.
    """
    if config.normalization not in _NORMS:
        raise ConfigError(f"--normalization {config.normalization} is not one of {', '.join(_NORMS)}")
    return _NORMS[config.normalization][config.layernorm_zero_centered_gamma](config, hidden_size, eps)


def _parameter(fill: Callable[..., Tensor], hidden_size: int, config: TransformerConfig) -> nn.Parameter:
    """On the engine's current device (the CPU for ``--use-cpu-initialization``), marked for the gradient reduction."""
    device = parameter_device(config)
    parameter = nn.Parameter(fill(hidden_size, dtype=config.params_dtype, device=device))
    parameter.sequence_parallel = config.sequence_parallel
    return parameter
