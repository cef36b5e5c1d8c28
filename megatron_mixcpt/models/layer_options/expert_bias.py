"""Biases of experts, for rows that are sorted by expert: a grouped product with the biases as one column.

There is no loop over experts and one tensor of the result's size beside it. The gradients are sums in a fixed order,
which those of gathered rows are not on CUDA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from megatron_mixcpt.models.grouped_linear import ALIGNMENT_BYTES, grouped_linear


def add_expert_bias(
    rows: Tensor, bias: Tensor, tokens_per_expert: Sequence[int], weights: Tensor | None = None, ranks: int = 1
) -> Tensor:
    """rows + weights * bias, each row's bias being that of its expert.

    Args:
        rows: [t, n], sorted by expert.
        bias: [e, n], of the dtype of ``rows``.
        tokens_per_expert: rows of each of the e experts, in order.
        weights: [t], of the router; None: 1.
        ranks: how many ranks hold the same biases and have their results added up afterwards.

    Returns:
        [t, n], of the dtype of ``rows``.
    """
    width = ALIGNMENT_BYTES // rows.element_size()
    column = rows.new_ones(rows.size(0)) if weights is None else weights.to(rows.dtype)
    share = bias if ranks == 1 else _ShareOfSum.apply(bias, ranks)
    columns, matrix = (pad(tensor[..., None], (0, width - 1)) for tensor in (column, share))
    return rows + grouped_linear(columns, matrix, tokens_per_expert)


class _ShareOfSum(torch.autograd.Function):
    """A rank's part of a term that all ranks hold: forward divides by their number; the gradient is the term's."""

    @staticmethod
    def forward(ctx: Any, term: Tensor, ranks: int) -> Tensor:
        return term / ranks

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
