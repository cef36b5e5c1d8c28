"""Sums over parts of the vocabulary merge to those over all of it, and both forms of the gradient agree."""

import pytest
import torch

from megatron_mixcpt.losses.divergence import (
    GradientRows,
    GradientWeights,
    Sums,
    TokenStatistics,
    gradient_at,
    gradient_of_rows,
    merge,
    sums_of,
)
from megatron_mixcpt.objective import Divergence

DIVERGENCES = [
    Divergence(),
    Divergence(direction="forward", teacher_entropy=True),
    Divergence(temperature=2.0),
    Divergence(direction="forward", temperature=0.5, teacher_entropy=True),
]


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(2, 6, 40, generator=generator) * 3).unbind(0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_parts_merge_to_the_whole(divergence: Divergence) -> None:
    student, teacher = logits()
    parts = [sums_of(s, t, divergence) for s, t in zip(student.split(16, -1), teacher.split(16, -1), strict=True)]
    stacked = Sums(*(None if part[0] is None else torch.stack(part) for part in zip(*parts, strict=True)))
    whole, expected = merge(stacked, divergence), sums_of(student, teacher, divergence)
    for name, number in expected._asdict().items():
        torch.testing.assert_close(getattr(whole, name), number, msg=name)


def test_sums_that_are_not_wanted_are_absent() -> None:
    sums = sums_of(*logits(), Divergence())
    assert sums.ntp_sum is None and sums.teacher_cross is None
    sums = sums_of(*logits(), Divergence(temperature=2.0, teacher_entropy=True))
    assert sums.ntp_sum is not None and sums.teacher_cross is not None


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_both_forms_of_the_gradient_agree(divergence: Divergence) -> None:
    student, teacher = logits()
    numbers = torch.rand(len(TokenStatistics._fields), 6, generator=torch.Generator().manual_seed(1))
    token = TokenStatistics(*numbers)._replace(student_max=torch.zeros(6), teacher_max=torch.zeros(6))
    if divergence.temperature == 1:
        token = token._replace(ntp_log_sum=token.student_log_sum)
    weights = GradientWeights(ntp=numbers[0], kl=numbers[1], offset=numbers[2])
    rows = gradient_of_rows(student, teacher, GradientRows.of(token, weights), divergence)
    at_third = gradient_at(student[:, 3], teacher[:, 3], token, weights, divergence)
    torch.testing.assert_close(rows[:, 3], at_third, rtol=1e-4, atol=1e-5)


def test_rows_without_weight_get_nothing() -> None:
    student, teacher = logits()
    token = TokenStatistics(*torch.zeros(len(TokenStatistics._fields), 6))
    weights = GradientWeights(ntp=torch.zeros(6), kl=torch.zeros(6), offset=torch.full((6,), float("nan")))
    gradient = gradient_of_rows(student * float("inf"), teacher, GradientRows.of(token, weights), Divergence())
    assert torch.equal(gradient, torch.zeros(6, 40))
