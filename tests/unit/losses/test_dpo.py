"""The preference loss against a case worked by hand and the papers' formulas; log-probabilities against torch's."""

import math

import pytest
import torch

from megatron_mixcpt.losses.dpo import dpo_loss, vocab_parallel_log_probs


def test_log_probs_equal_log_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 4, 50, generator=generator) * 3).requires_grad_()
    labels = torch.randint(0, 48, (3, 4), generator=generator)
    weight = torch.rand(3, 4, generator=generator)
    log_probs = vocab_parallel_log_probs(logits, labels, tp_group=None, vocab_size=48)
    (gradient,) = torch.autograd.grad((log_probs * weight).sum(), logits)

    dense = logits.detach()[..., :48].double().requires_grad_()
    expected = dense.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), dense)
    # The accuracy of float32 for log-probabilities of about 10 and gradients of at most 1.
    torch.testing.assert_close(log_probs.double(), expected.detach(), rtol=0.0, atol=1e-5)
    torch.testing.assert_close(gradient[..., :48].double(), expected_gradient, rtol=0.0, atol=5e-7)
    assert not gradient[..., 48:].any()


def test_worked_case() -> None:
    """beta 1/2; the policy raised the chosen response by ln 9 and lowered the rejected one by 0: h = ln 9.

    Rewards ln 3 and 0, margin ln 3, sigmoid 3/4, loss ln(4/3); for ipo (ln 9 - 1)^2.
    """
    chosen, rejected = torch.tensor([math.log(9.0) - 20]), torch.tensor([-30.0])
    reference = torch.tensor([-20.0]), torch.tensor([-30.0])
    result = dpo_loss(chosen, rejected, *reference, beta=0.5)
    # Log-probabilities of 20 to 30 are rounded to 1e-6 in float32.
    for actual, expected in zip(result, (math.log(4 / 3), math.log(3), 0.0, math.log(3), 1.0), strict=True):
        torch.testing.assert_close(actual, torch.tensor([expected]), rtol=0.0, atol=2e-6)
    ipo = dpo_loss(chosen, rejected, *reference, beta=0.5, loss_type="ipo").loss
    torch.testing.assert_close(ipo, torch.tensor([(math.log(9) - 1) ** 2]), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_and_gradient_follow_the_paper(label_smoothing: float) -> None:
    """The gradient is -beta * (sigmoid(-margin) - label_smoothing), up for the chosen, down for the rejected."""
    generator = torch.Generator().manual_seed(0)
    policy = (torch.randn(2, 16, generator=generator) * 20).requires_grad_()
    reference = torch.randn(2, 16, generator=generator) * 20
    result = dpo_loss(*policy, *reference, beta=0.1, label_smoothing=label_smoothing)
    (gradient,) = torch.autograd.grad(result.loss.sum(), policy)
    margin = 0.1 * ((policy[0] - policy[1]) - (reference[0] - reference[1])).detach().double()
    probability = margin.sigmoid()
    expected_loss = -(1 - label_smoothing) * probability.log() - label_smoothing * (1 - probability).log()
    expected_slope = 0.1 * (1 - probability - label_smoothing)
    torch.testing.assert_close(result.loss.double(), expected_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), torch.stack([-expected_slope, expected_slope]), rtol=1e-4, atol=1e-6)
    assert torch.equal(result.accuracy, (margin > 0).float())
    assert [part.requires_grad for part in result] == [True, False, False, False, False]


def test_a_policy_equal_to_its_reference_has_loss_log_2() -> None:
    policy = torch.tensor([-5.0, -400.0]), torch.tensor([-7.0, -300.0])
    result = dpo_loss(*policy, *policy, beta=0.01)
    torch.testing.assert_close(result.loss, torch.full((2,), math.log(2)))
    assert not result.margin.any() and not result.accuracy.any()


def test_extreme_margins_are_safe() -> None:
    far = torch.tensor([-1e5, 1e5])
    result = dpo_loss(far, -far, torch.zeros(2), torch.zeros(2), beta=1.0)
    assert result.loss.tolist() == [2e5, 0.0]


def test_wrong_settings_are_refused() -> None:
    pair = [torch.zeros(1)] * 4
    with pytest.raises(ValueError, match="loss_type 'hinge'"):
        dpo_loss(*pair, beta=0.1, loss_type="hinge")
    with pytest.raises(ValueError, match=r"label_smoothing 0\.5"):
        dpo_loss(*pair, beta=0.1, label_smoothing=0.5)
    with pytest.raises(ValueError, match="given with ipo"):
        dpo_loss(*pair, beta=0.1, label_smoothing=0.1, loss_type="ipo")
