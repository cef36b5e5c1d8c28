"""What the loss function of pre-training reports: sums and counts over the tokens that count."""

from unittest import mock

import pytest
import torch

from megatron_mixcpt.log_names import DIVERGENCE, LOSS, STUDENT_LOSS, SWAPPED_FRACTION, of_dataset
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.training.pretraining.loss import TokensPerSecond, mixcpt_loss_func


def output(sequence: int, batch: int) -> tuple:
    """The fields of ``SummedMixCPTLoss``, with some numbers for each token."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(8, sequence, batch, generator=generator)
    return torch.tensor(5.0), (*numbers[:3], *(numbers[3:5] > 0.5), *numbers[5:]), None


def test_sums_and_counts_of_the_tokens_that_count() -> None:
    loss_mask = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    distilled = torch.tensor([[True], [False]]).expand(2, 5)
    summed, tokens, _ = output(5, 2)
    options = {"objective": Objective(), "kinds": ("a", "b"), "kind": torch.tensor([0, 1])}
    loss, num_tokens, report = mixcpt_loss_func(
        loss_mask, distilled, (summed, tokens, None), penalty=lambda: torch.tensor(2.0, dtype=torch.float64), **options
    )
    counted, taught = loss_mask.bool().T, loss_mask.bool().T & distilled.T
    assert loss is summed and num_tokens.item() == 8 and num_tokens.dtype == torch.int32
    assert report[LOSS].tolist() == [7.0, 8.0] and report[LOSS].dtype == torch.float32
    for key, values, mask in (
        (STUDENT_LOSS, tokens[1], counted),
        (DIVERGENCE, tokens[2], taught),
        (SWAPPED_FRACTION, tokens[3], taught),
        (of_dataset(DIVERGENCE, "a"), tokens[2], taught),
    ):
        torch.testing.assert_close(report[key], torch.stack([values[mask].float().sum(), mask.sum().float()]))
    # Of no token: a mean of 0, and not nan.
    total, count = report[of_dataset(DIVERGENCE, "b")].tolist()
    assert total == 0.0 and count == pytest.approx(1e-20)
    assert len(report) == 9


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    loss, num_tokens, report = mixcpt_loss_func(
        torch.ones(2, 5), None, output(5, 2), objective=Objective(distillation="none")
    )
    assert num_tokens.item() == 10 and report[DIVERGENCE].tolist() == pytest.approx([0.0, 1e-20])
    assert set(report) == {LOSS, STUDENT_LOSS, DIVERGENCE, SWAPPED_FRACTION}


def test_tokens_per_second_are_all_ranks_tokens_over_the_wall_time() -> None:
    """By hand: two ranks with 30 and 10 tokens in the same 4 seconds are 10 tokens a second together."""
    reports = []
    for num_tokens in (30.0, 10.0):
        with mock.patch("megatron_mixcpt.training.pretraining.loss.time.monotonic", side_effect=[100.0, 104.0]):
            measure = TokensPerSecond(num_ranks=2)
            *_, report = measure(lambda _, n=num_tokens: (None, None, {LOSS: torch.tensor([1.0, n])}), ())
        reports.append(report["tokens per second"])
    tokens, seconds = sum(reports).tolist()  # as the engine adds them up
    assert tokens / seconds == 10.0
