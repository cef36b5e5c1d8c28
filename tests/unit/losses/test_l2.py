"""The distance to the original parameters and its gradient, whole and in slices."""

import pytest
import torch

from megatron_mixcpt.losses import l2
from megatron_mixcpt.losses.l2 import add_l2_gradient, l2_distance


def parameters(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 7), (11,), (2, 3, 4))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slice_elements", [4, 2**24])
def test_distance_and_gradient(dtype: torch.dtype, slice_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(l2, "SLICE_ELEMENTS", slice_elements)
    params, reference = parameters(dtype, 0), parameters(dtype, 1)
    leaves = [param.double().requires_grad_() for param in params]
    expected = sum((leaf - start.double()).square().sum() for leaf, start in zip(leaves, reference, strict=True))
    (expected * 0.3).backward()

    gradients = [torch.ones_like(param, dtype=torch.float32) for param in params]
    distance = add_l2_gradient(gradients, params, reference, coefficient=0.3)
    # Differences and their squares are rounded to float32, relative 6e-8 each.
    torch.testing.assert_close(distance, expected.detach(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(l2_distance(params, reference), expected.detach(), rtol=1e-6, atol=0.0)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        torch.testing.assert_close(gradient.double() - 1, leaf.grad, rtol=1e-6, atol=1e-6)


def test_duplicates_get_a_gradient_but_are_not_counted() -> None:
    params, reference = [torch.ones(3), torch.ones(4)], [torch.zeros(3), torch.zeros(4)]
    gradients = [torch.zeros(3), torch.zeros(4)]
    distance = add_l2_gradient(gradients, params, reference, coefficient=0.5, is_duplicate=[True, False])
    assert distance.item() == 4.0 == l2_distance(params, reference, is_duplicate=[True, False]).item()
    assert torch.equal(gradients[0], torch.ones(3)) and torch.equal(gradients[1], torch.ones(4))


def test_unequal_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        l2_distance([torch.ones(3)], [])
