"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796), a rival of distillation: a penalty

    coefficient / 2 * sum_i F_i (theta_i - theta_ori_i)^2

with the diagonal F of the Fisher information, so that weights on which the general text depends are held the tightest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def fisher_diagonal(model: nn.Module, rows: Tensor) -> list[Tensor]:
    """For each parameter, the mean over tokens of the squared gradient of the log probability of what the model itself
    would say there: the Fisher information, not the empirical one, which takes the text's own tokens.

    A token per row is drawn for its gradient, which is then that of a single prediction.

    Args:
        model: a causal language model of transformers.
        rows: int64 ``[rows, tokens]`` of the text to be kept.
    """
    generator = torch.Generator().manual_seed(0)
    params = list(model.parameters())
    sums = [torch.zeros_like(param) for param in params]
    for row in rows:
        place = int(torch.randint(len(row) - 1, (), generator=generator))
        logits = model(row[None, : place + 1], use_cache=False).logits[0, -1]
        said = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
        for total, gradient in zip(sums, torch.autograd.grad(cross_entropy(logits[None], said), params), strict=True):
            total += gradient.square()
    return [total / len(rows) for total in sums]


@torch.no_grad()
def add_elastic_gradient(
    params: Sequence[Tensor], originals: Sequence[Tensor], fisher: Sequence[Tensor], coefficient: float
) -> None:
    """Add the penalty's gradient, coefficient * F * (theta - theta_ori), to the parameters' ``grad``, in place."""
    for param, original, information in zip(params, originals, fisher, strict=True):
        assert param.grad is not None, "the penalty comes after the loss's backward pass"
        param.grad.add_(information * (param - original), alpha=coefficient)
