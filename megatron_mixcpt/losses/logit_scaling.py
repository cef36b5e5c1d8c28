"""From the output layer's product z to a model's logits: a multiplier (Granite, Cohere), then a soft cap (Gemma 2).

    logits = cap * tanh(multiplier * z / cap),   d logits / d z = multiplier * (1 - (logits / cap)^2)

The losses take z as if it were the logits. Their passes (``kernels.py``) compute the logits from it in float32 where
they read it, and write the gradient of z, so that neither logits nor slopes are ever held.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class LogitScaling(NamedTuple):
    """What a model makes of its output layer's product; the default leaves it as it is."""

    multiplier: float = 1.0
    softcap: float | None = None

    def __call__(self, products: Tensor) -> Tensor:
        """The logits, of the same shape and dtype; those of 0 are 0."""
        if self.softcap is not None:
            return self.softcap * torch.tanh(products * (self.multiplier / self.softcap))
        return products if self.multiplier == 1 else products * self.multiplier

    def gradient_of_products(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient of the products from that of the logits; all of one shape, float32."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        return gradient if self.multiplier == 1 else gradient * self.multiplier

    def apply_(self, products: Tensor) -> Tensor:
        """Overwrite products by logits, without a gradient, in their dtype: rounded as transformers rounds them."""
        if self.multiplier != 1:
            products.mul_(self.multiplier)
        return products if self.softcap is None else products.div_(self.softcap).tanh_().mul_(self.softcap)


UNSCALED = LogitScaling()


class LogitScalings(NamedTuple):
    """Those of both models."""

    student: LogitScaling = UNSCALED
    teacher: LogitScaling = UNSCALED


BOTH_UNSCALED = LogitScalings()
