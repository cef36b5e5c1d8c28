"""The fused linear loss on one rank: equal to the loss on all logits, and bounded in memory by its chunk."""

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.losses.fused_linear import Projection, SummedMixCPTLoss, fused_linear_mixcpt_loss
from megatron_mixcpt.losses.lssd import MixCPTLoss, mixcpt_loss
from megatron_mixcpt.objective import Divergence, Objective

OBJECTIVE = Objective(alpha=0.8)
FORWARD = Objective(alpha=0.8, divergence=Divergence(direction="forward"))
# Float32 products over 32 to 64 terms, added up in another order: a few roundings of numbers of about 1.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def sample(seed: int = 0) -> dict[str, Tensor]:
    """Hidden states ``[s, b, h]`` and weights of a student and a wider teacher, labels and masks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(10, 4, 32, generator=generator),
        "weight": torch.randn(60, 32, generator=generator) / 4,
        "teacher_hidden": torch.randn(10, 4, 48, generator=generator),
        "teacher_weight": torch.randn(60, 48, generator=generator) / 4,
        "labels": torch.randint(0, 57, (10, 4), generator=generator),
        "loss_mask": (torch.rand(10, 4, generator=generator) > 0.2).float(),
    }


def expected_results(
    part: dict[str, Tensor], has_teacher: bool, objective: Objective = OBJECTIVE, **options
) -> tuple[MixCPTLoss, Tensor, tuple[Tensor, ...]]:
    """Losses, sum and gradients (hidden, weight) from whole logits, autograd and the unfused loss."""
    hidden, weight = part["hidden"].clone().requires_grad_(), part["weight"].clone().requires_grad_()
    teacher_logits = part["teacher_hidden"] @ part["teacher_weight"].t() if has_teacher else None
    result = mixcpt_loss(hidden @ weight.t(), teacher_logits, part["labels"], objective, tp_group=None, **options)
    loss_sum = (result.loss * part["loss_mask"]).sum()
    return result, loss_sum, torch.autograd.grad(loss_sum * 3, (hidden, weight))


def fused(
    part: dict[str, Tensor],
    hidden: Tensor,
    weight: Tensor,
    has_teacher: bool = True,
    objective: Objective = OBJECTIVE,
    **options,
) -> SummedMixCPTLoss:
    teacher = Projection(part["teacher_hidden"], part["teacher_weight"]) if has_teacher else None
    options = {"tp_group": None, "loss_mask": part["loss_mask"], **options}
    return fused_linear_mixcpt_loss(Projection(hidden, weight), teacher, part["labels"], objective, **options)


@pytest.mark.parametrize("has_teacher", [True, False])
@pytest.mark.parametrize("chunk_tokens", [7, 256])
def test_equals_the_loss_on_all_logits(has_teacher: bool, chunk_tokens: int) -> None:
    part = sample()
    options = {"vocab_size": 57, "distill_mask": torch.tensor([True, False, True, True])}
    expected, expected_sum, expected_gradients = expected_results(part, has_teacher, FORWARD, **options)
    hidden, weight = part["hidden"].requires_grad_(), part["weight"].requires_grad_()
    result = fused(part, hidden, weight, has_teacher, FORWARD, chunk_tokens=chunk_tokens, **options)
    for name in ("loss", "ntp", "lssd", "teacher_top", "student_top"):
        torch.testing.assert_close(getattr(result.tokens, name), getattr(expected, name).detach(), **TOLERANCE)
    assert torch.equal(result.tokens.swapped, expected.swapped) and torch.equal(result.tokens.agreed, expected.agreed)
    torch.testing.assert_close(result.loss_sum, expected_sum, **TOLERANCE)
    gradients = torch.autograd.grad(result.loss_sum * 3, (hidden, weight))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, **TOLERANCE)


def test_gradient_accumulation_fusion_adds_to_main_grad() -> None:
    part = sample()
    _, _, (_, expected_gradient) = expected_results(part, True)
    hidden, weight = part["hidden"].requires_grad_(), part["weight"].requires_grad_()
    weight.main_grad = torch.ones(60, 32)
    for grad_added in (False, True):
        if grad_added:
            weight.grad_added_to_main_grad = False
        (fused(part, hidden, weight, gradient_accumulation_fusion=True).loss_sum * 3).backward()
        assert (weight.grad is not None) == grad_added
    assert weight.grad_added_to_main_grad
    torch.testing.assert_close(weight.main_grad, 1 + 2 * expected_gradient, **TOLERANCE)


def test_bfloat16_rounds_as_the_unfused_loss_does() -> None:
    """Both compute logits and gradients in bfloat16, so both are off the float32 gradient by its roundings."""
    part = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in sample().items()}
    _, _, unfused = expected_results(part, True)
    exact = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in part.items()}
    _, _, expected = expected_results(exact, True)
    hidden, weight = part["hidden"].requires_grad_(), part["weight"].requires_grad_()
    gradients = torch.autograd.grad(fused(part, hidden, weight, chunk_tokens=16).loss_sum * 3, (hidden, weight))
    for gradient, plain, exactly in zip(gradients, unfused, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - exactly).norm() <= 1.2 * (plain - exactly).norm()


def test_evaluation_computes_no_gradient() -> None:
    part = sample()
    expected, expected_sum, _ = expected_results(part, True)
    with torch.no_grad():
        result = fused(part, part["hidden"], part["weight"].requires_grad_())
    assert not result.loss_sum.requires_grad
    torch.testing.assert_close(result.tokens.loss, expected.loss.detach(), **TOLERANCE)
    torch.testing.assert_close(result.loss_sum, expected_sum.detach(), **TOLERANCE)
