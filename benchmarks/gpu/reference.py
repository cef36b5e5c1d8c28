"""The loss as the paper writes it, dense, in float64, with autograd for the gradient, on the device of its inputs."""

from typing import NamedTuple

import torch
from torch import Tensor


class Expected(NamedTuple):
    """Of tokens ``[n]``."""

    loss: Tensor
    ntp: Tensor
    lssd: Tensor
    gradient: Tensor
    """Of the sum of the losses in the student's logits ``[n, v]``."""


def expected_loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float) -> Expected:
    """Eq. 1 and 4 to 7 on whole logits ``[n, v]`` of any floating dtype and labels ``[n]``."""
    student, teacher = student.double().requires_grad_(), teacher.double()
    label, top = labels.unsqueeze(1), teacher.argmax(1, keepdim=True)
    at_label, at_top = teacher.gather(1, label), teacher.gather(1, top)
    swapped = teacher.scatter(1, top, at_label).scatter(1, label, at_top)
    log_p = student.log_softmax(1)
    ntp = -log_p.gather(1, label).squeeze(1)
    lssd = (log_p.exp() * (log_p - swapped.log_softmax(1))).sum(1)
    loss = alpha * ntp + (1 - alpha) * lssd
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    return Expected(loss.detach(), ntp.detach(), lssd.detach(), gradient)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``|actual - expected| / |expected|`` in float64; NaN where either holds one."""
    expected = expected.double()
    return ((actual.double() - expected).norm() / expected.norm()).item()
