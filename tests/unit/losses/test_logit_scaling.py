"""Losses of multiplied and capped logits, and their gradients, against the dense float64 reference on such logits."""

from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses.dpo import vocab_parallel_log_probs
from megatron_mixcpt.losses.fused_linear import Projection, fused_linear_mixcpt_loss
from megatron_mixcpt.losses.logit_scaling import LogitScaling, LogitScalings
from megatron_mixcpt.losses.lssd import mixcpt_loss
from megatron_mixcpt.testing import run_distributed
from tests.unit.losses.dense_reference import ExpectedLoss, expected_mixcpt_loss
from tests.unit.losses.test_lssd import ALPHA, GRADIENT_TOLERANCE, TOLERANCE, assert_matches, objective, sample

# Products reach 15: the student's are bent by up to a half, the teacher's grow and are bent a little.
SCALINGS = LogitScalings(student=LogitScaling(0.7, 9.0), teacher=LogitScaling(1.2, 40.0))


class Products(NamedTuple):
    """Hidden states ``[s, b, h]``, output weights ``[v, h]``, and what they come to, ``[s * b, v]``."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor

    @property
    def student(self) -> Tensor:
        return (self.hidden @ self.weight.t()).flatten(0, 1)

    @property
    def teacher(self) -> Tensor:
        return (self.teacher_hidden @ self.teacher_weight.t()).flatten(0, 1)


def products(vocab_size: int) -> Products:
    generator = torch.Generator().manual_seed(2)
    sizes = (6, 4, 16), (vocab_size, 16), (6, 4, 24), (vocab_size, 24)
    return Products(*(torch.randn(*size, generator=generator) for size in sizes))


def written_out(scaling: LogitScaling, products: Tensor) -> Tensor:
    """In float64, in the words of transformers' Gemma2ForCausalLM after a multiplier."""
    logits = scaling.multiplier * products.double()
    return logits if scaling.softcap is None else torch.tanh(logits / scaling.softcap) * scaling.softcap


def expected_of(
    student: Tensor, teacher: Tensor | None, labels: Tensor, scalings: LogitScalings, **kind
) -> ExpectedLoss:
    """The dense reference on the written-out logits, its gradient carried on to the products by autograd."""
    leaf = student.double().requires_grad_()
    logits = written_out(scalings.student, leaf)
    target = None if teacher is None else written_out(scalings.teacher, teacher)
    expected = expected_mixcpt_loss(logits.detach(), target, labels, ALPHA, **kind)
    (gradient,) = torch.autograd.grad(logits, leaf, expected.gradient)
    return expected._replace(gradient=gradient)


@pytest.mark.parametrize("scaling", [LogitScaling(0.125), LogitScaling(1.0, 9.0), LogitScaling(3.0, 9.0)])
@pytest.mark.parametrize("kind", [{}, {"divergence": "forward", "temperature": 2.0}, {"teacher": False}])
def test_loss_and_gradient_equal_the_dense_reference(scaling: LogitScaling, kind: dict) -> None:
    student, teacher, labels = sample(16, 1100)
    kind, scalings = dict(kind), LogitScalings(scaling, SCALINGS.teacher)
    teacher = teacher if kind.pop("teacher", True) else None
    leaf = student.clone().requires_grad_()
    options = {"tp_group": None, "inplace": True, "scalings": scalings}
    result = mixcpt_loss(leaf * 1, teacher, labels, objective(**kind), **options)
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    expected = expected_of(student, teacher, labels, scalings, **kind)
    # The multiplier and the divergence's factor of temperature^2 multiply the rounding.
    assert_matches(result, gradient, expected, rtol=1e-6, atol=TOLERANCE["atol"] * kind.get("temperature", 1.0) ** 2)
    tolerance = GRADIENT_TOLERANCE["atol"] * max(1.0, scaling.multiplier) * kind.get("temperature", 1.0)
    torch.testing.assert_close(gradient.double(), expected.gradient, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("has_teacher", [True, False])
def test_in_chunks_and_across_ranks(has_teacher: bool) -> None:
    """Two ranks, the second with padding; a student and a teacher that scale differently."""
    labels = torch.randint(0, 70, (6, 4), generator=torch.Generator().manual_seed(3))
    part = products(70)
    teacher = part.teacher if has_teacher else None
    expected = expected_of(part.student, teacher, labels.flatten(), SCALINGS)
    check_chunks(part, labels, has_teacher, expected, None)
    if has_teacher:
        run_distributed(check_on_ranks, 2, part, labels, expected)


def check_on_ranks(part: Products, labels: Tensor, expected: ExpectedLoss) -> None:
    check_chunks(part, labels, True, expected, dist.group.WORLD)
    check_chunks(part, labels, False, expected_of(part.student, None, labels.flatten(), SCALINGS), dist.group.WORLD)


def check_chunks(
    part: Products, labels: Tensor, has_teacher: bool, expected: ExpectedLoss, group: dist.ProcessGroup | None
) -> None:
    """Whole and in chunks: the losses, and the gradients of hidden states and of this rank's rows of the weight."""
    columns = 40 if group is not None else 80
    first = 0 if group is None else columns * group.rank()
    padded = (
        torch.nn.functional.pad(weight, (0, 0, 0, 10), value=3.0) for weight in (part.weight, part.teacher_weight)
    )
    weight, teacher_weight = (matrix[first : first + columns].contiguous() for matrix in padded)
    part = part._replace(weight=weight.requires_grad_(), hidden=part.hidden.clone().requires_grad_())
    teacher = Projection(part.teacher_hidden, teacher_weight, SCALINGS.teacher) if has_teacher else None
    student = Projection(part.hidden, part.weight, SCALINGS.student)
    options = {"tp_group": group, "vocab_size": 70}
    result = fused_linear_mixcpt_loss(student, teacher, labels, objective(), chunk_tokens=7, **options)
    for name in ("loss", "ntp", "lssd", "student_top"):
        torch.testing.assert_close(
            getattr(result.tokens, name).flatten().double(), getattr(expected, name), rtol=1e-5, atol=2e-5
        )
    assert torch.equal(result.tokens.swapped.flatten(), expected.swapped)
    assert torch.equal(result.tokens.agreed.flatten(), expected.agreed)
    gradients = torch.autograd.grad(result.loss_sum, (part.hidden, part.weight))
    of_products = expected.gradient.view(6, 4, 70)
    whole = products(70)
    of_hidden = of_products @ whole.weight.double()
    of_weight = of_products.flatten(0, 1).t() @ whole.hidden.double().flatten(0, 1)
    of_weight = torch.nn.functional.pad(of_weight, (0, 0, 0, 10))[first : first + columns]
    # Float32 products of 16 to 80 terms of about 1.
    torch.testing.assert_close(gradients[0].double(), of_hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1].double(), of_weight, rtol=1e-5, atol=1e-5)
    scaling = SCALINGS.student
    log_probs = vocab_parallel_log_probs(part.hidden @ weight.t(), labels, scaling=scaling, **options)
    torch.testing.assert_close(-log_probs.flatten().double(), expected.ntp, rtol=1e-5, atol=2e-5)


def test_in_place_it_rounds_as_transformers() -> None:
    given = torch.randn(5, 300, generator=torch.Generator().manual_seed(4)).mul(20).bfloat16()
    expected = torch.tanh(given * 0.5 / 30.0) * 30.0
    assert torch.equal(LogitScaling(0.5, 30.0).apply_(given.clone()), expected)
    torch.testing.assert_close(
        LogitScaling(0.5, 30.0)(given.float()), written_out(LogitScaling(0.5, 30.0), given).float()
    )


def test_a_token_without_a_gradient_may_hold_anything() -> None:
    student, teacher, labels = sample(4, 50)
    student[0], labels[0] = float("inf"), -100
    leaf = student.requires_grad_()
    result = mixcpt_loss(
        leaf,
        teacher,
        labels,
        objective(),
        tp_group=None,
        distill_mask=torch.tensor([False, True, True, True]),
        scalings=SCALINGS,
    )
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    assert torch.equal(gradient[0], torch.zeros(50)) and gradient[1:].abs().sum() > 0
