"""Biases of sorted rows against a loop over experts in float64, and as shares of a sum over ranks."""

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.models.layer_options.expert_bias import add_expert_bias

COUNTS = [5, 0, 7, 1]
# float32: one product and one sum. bfloat16: product and sum are rounded to 8 bits, of numbers up to about 4.
TOLERANCE = {torch.float32: {"rtol": 1e-6, "atol": 1e-6}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}


def tensors(dtype: torch.dtype, num_columns: int) -> tuple[Tensor, ...]:
    """Rows, biases, the router's weights in float32, and what the result is multiplied by to make a loss."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((sum(COUNTS), num_columns), (len(COUNTS), num_columns), (sum(COUNTS),), (sum(COUNTS), num_columns))
    rows, bias, weights, factor = (torch.randn(shape, generator=generator) for shape in shapes)
    return rows.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), weights.requires_grad_(), factor


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("num_columns", [24, 5])  # torch has no grouped product for rows of 5 numbers
def test_values_and_gradients_are_a_loop_s(dtype: torch.dtype, is_weighted: bool, num_columns: int) -> None:
    rows, bias, weights, factor = tensors(dtype, num_columns)
    given = weights.to(dtype) if is_weighted else torch.ones_like(weights).to(dtype)
    inputs = (rows, bias, weights) if is_weighted else (rows, bias)
    result = add_expert_bias(rows, bias, COUNTS, given if is_weighted else None)
    grads = torch.autograd.grad((result * factor).sum(), inputs)
    of_rows = torch.cat([each.expand(count, -1) for each, count in zip(bias.double(), COUNTS, strict=True)])
    expected = rows.double() + given.double()[:, None] * of_rows
    expected_grads = torch.autograd.grad((expected * factor.double()).sum(), inputs)
    torch.testing.assert_close(result, expected.to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(grads[:2], expected_grads[:2], rtol=TOLERANCE[dtype]["rtol"], atol=4 * 2**-6)
    assert not grads[1][1].any()  # the second expert has no rows


def test_ranks_add_up_to_one_bias_and_have_its_gradient_each() -> None:
    rows, bias, _, factor = tensors(torch.float32, 24)
    alone = add_expert_bias(torch.zeros_like(rows), bias, COUNTS)
    shares = [add_expert_bias(torch.zeros_like(rows), bias, COUNTS, ranks=2) for _ in range(2)]
    torch.testing.assert_close(sum(shares), alone, rtol=0, atol=0)
    (expected,) = torch.autograd.grad((alone * factor).sum(), [bias])
    for share in shares:
        torch.testing.assert_close(torch.autograd.grad((share * factor).sum(), [bias])[0], expected)
