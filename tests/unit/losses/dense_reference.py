"""The mathematics of the losses as the paper writes it: dense, float64, on one rank, with autograd for the gradient."""

from typing import NamedTuple

import torch
from torch import Tensor


class ExpectedLoss(NamedTuple):
    loss: Tensor
    ntp: Tensor
    lssd: Tensor
    swapped: Tensor
    agreed: Tensor
    teacher_top: Tensor
    student_top: Tensor
    gradient: Tensor


def expected_mixcpt_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    alpha: float,
    swap: bool = True,
    grad_output: Tensor | float = 1.0,
    divergence: str = "reverse",
    temperature: float = 1.0,
) -> ExpectedLoss:
    """Eq. 1, 4 to 7 on whole logits ``[tokens, v]``, and the gradient of ``(grad_output * loss).sum()``; float64."""
    student = student.double().requires_grad_()
    log_p = student.log_softmax(-1)
    ntp = -log_p[torch.arange(len(labels)), labels]
    if teacher is None:
        alpha, lssd, swapped = 1.0, torch.zeros_like(ntp), torch.zeros(len(labels), dtype=torch.bool)
        agreed, teacher_top, student_top = swapped, lssd, lssd
    else:
        target, swapped = teacher.double().clone(), torch.zeros(len(labels), dtype=torch.bool)
        for token, label in enumerate(labels.tolist()):
            top = target[token].tolist().index(target[token].max().item())
            if swap and top != label:
                target[token, top], target[token, label] = target[token, label].clone(), target[token, top].clone()
                swapped[token] = True
        at_top = teacher.argmax(-1, keepdim=True)
        agreed = (student.gather(-1, at_top) == student.amax(-1, keepdim=True)).squeeze(-1)
        teacher_top = (teacher.double() / temperature).softmax(-1).amax(-1)
        student_top = (student.detach() / temperature).softmax(-1).gather(-1, at_top).squeeze(-1)
        warm_p, log_q = (student / temperature).log_softmax(-1), (target / temperature).log_softmax(-1)
        log_from, log_to = (warm_p, log_q) if divergence == "reverse" else (log_q, warm_p)
        lssd = temperature**2 * (log_from.exp() * (log_from - log_to)).sum(-1)
    loss = alpha * ntp + (1 - alpha) * lssd
    (gradient,) = torch.autograd.grad((loss * grad_output).sum(), student)
    return ExpectedLoss(loss.detach(), ntp.detach(), lssd.detach(), swapped, agreed, teacher_top, student_top, gradient)
