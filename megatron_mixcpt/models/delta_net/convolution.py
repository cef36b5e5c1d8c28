"""A causal convolution for each channel: a token sees a few tokens before it, of its own document."""

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad


class CausalConvolution(nn.Module):
    """Holds the weight, [channels of this rank, 1, tokens], as ``torch.nn.Conv1d`` has it; there is no bias."""

    def __init__(self, num_channels: int, num_tokens: int, *, device: torch.device | int | str, dtype: torch.dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_channels, 1, num_tokens, device=device, dtype=dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)


def causal_convolution(x: Tensor, weight: Tensor, starts: Tensor | None = None) -> Tensor:
    """y_t = sum over i of weight_i x_{t - n + 1 + i}, without the tokens before the sequence or the document.

    Args:
        x: [b, s, channels].
        weight: [channels, 1, n], of the dtype of x.
        starts: int64 [b or 1, s], the position of the first token of each token's document; None: there is only one.

    Returns:
        [b, s, channels], of the dtype of x. Sums are float32.
    """
    channels, _, num_tokens = weight.shape
    if starts is None:
        padded = pad(x.transpose(1, 2), (num_tokens - 1, 0))
        return conv1d(padded, weight, groups=channels).transpose(1, 2)
    before = torch.arange(x.size(1), device=x.device) - starts  # tokens of the document before each token
    padded, result = pad(x, (0, 0, num_tokens - 1, 0)), torch.zeros_like(x, dtype=torch.float32)
    for index, factor in enumerate(weight[:, 0].float().unbind(-1)):
        seen = (before >= num_tokens - 1 - index)[..., None]
        result = result + padded[:, index : index + x.size(1)] * factor * seen
    return result.type_as(x)
