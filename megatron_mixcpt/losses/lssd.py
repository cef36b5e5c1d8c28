"""Logit swap self-distillation (Mix-CPT, arXiv 2407.10804): next-token prediction plus a divergence from the teacher.

With student logits s, logits t of the frozen base model and the label y, per token:

    ntp  = -log p_y, p = softmax(s)                                                  (Eq. 1)
    t~   = t with the entries of a = argmax t and y exchanged, if they differ        (Eq. 4)
    lssd = KL(p || softmax(t~)) = sum_v p_v (log p_v - log softmax(t~)_v)            (Eq. 5 and 6, as the full sum)
    loss = alpha * ntp + (1 - alpha) * lssd                                          (Eq. 7)

The exchange changes neither the teacher's maximum nor its log-sum-exp, so it needs no pass over the logits. With both
models' logits taken relative to their maxima:

    lssd = E_p[s - t] - (p_y - p_a) (t_a - t_y) - lse_s + lse_t
    d loss / d s_v = alpha (p_v - [v = y]) + (1 - alpha) p_v (s_v - t~_v - lse_s + lse_t - lssd)

Nine numbers per token and rank decide the loss (``statistics.py``), and with what they say of the whole vocabulary each
rank computes the gradient of its columns: one all-gather forward, no collective backward. The forward divergence and
other temperatures need the same numbers (``divergence.py``).
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_mixcpt.losses.divergence import GradientWeights, TokenStatistics, gradient_at, token_divergence
from megatron_mixcpt.losses.statistics import token_statistics
from megatron_mixcpt.losses.vocab_parallel import (
    VocabShard,
    check_shapes,
    gradient_buffer,
    overwrite_at,
    vocab_shard,
)
from megatron_mixcpt.objective import Divergence, Objective


class MixCPTLoss(NamedTuple):
    """Per token, the labels' shape: losses in nats, float32. Only ``loss`` carries a gradient.

    Of what the loss is made of anyway: ``swapped``, whether the teacher's top logit was exchanged; ``agreed``, whether
    the student's largest logit is at the teacher's top token (both bool); and both models' probabilities of that token,
    at the divergence's temperature, float32. ``teacher_entropy`` is 0 unless wanted. Without a teacher all are 0.
    """

    loss: Tensor
    ntp: Tensor
    lssd: Tensor
    swapped: Tensor
    agreed: Tensor
    teacher_top: Tensor
    student_top: Tensor
    teacher_entropy: Tensor


def vocab_parallel_mixcpt_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    alpha: float,
    tp_group: dist.ProcessGroup | None,
    swap: bool = True,
    inplace: bool = False,
    vocab_size: int | None = None,
) -> MixCPTLoss:
    """The paper's loss of every token: :func:`mixcpt_loss` with this ``alpha``, with or without the swap (``kd``)."""
    objective = Objective(distillation="lssd" if swap else "kd", alpha=alpha)
    return mixcpt_loss(
        student_logits, teacher_logits, labels, objective, tp_group=tp_group, vocab_size=vocab_size, inplace=inplace
    )


def mixcpt_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    objective: Objective,
    *,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int | None = None,
    distill_mask: Tensor | None = None,
    inplace: bool = False,
) -> MixCPTLoss:
    """alpha * NTP + (1 - alpha) * LSSD of every token (Mix-CPT, Eq. 7), over a vocabulary sharded across ``tp_group``.

    The softmaxes are taken in float32 whatever the logits' dtype. One all-gather of 36 bytes per token and rank (12
    without a teacher; 4 more at temperatures other than 1, 4 more for the teacher's entropy) forward, no collective
    backward. Saved for backward: both logits and a few numbers per token. A token whose incoming gradient is 0 gets
    gradient 0, whatever its logits and label.

    Args:
        student_logits: ``[s, b, v/tp]`` (any leading shape), float32, bfloat16 or float16, finite.
        teacher_logits: the same shape; no gradient flows to it. None: ``loss`` is ``ntp`` for every token, ``lssd`` 0.
        labels: int64 ``[s, b]``. A label outside ``[0, vocab_size)`` is no label: ``ntp`` is 0 there and nothing is
            swapped.
        objective: the options of the loss. Which samples are distilled is up to ``distill_mask``.
        tp_group: the ranks that hold the vocabulary, in the order of their columns; None means this one alone.
        vocab_size: number of true columns over all ranks; the rest, at the end, is padding: no probability, gradient 0.
            None: no padding.
        distill_mask: bool, broadcast to the labels' shape (``[b]``: by sample). Where False, ``loss`` is ``ntp``, and
            ``lssd`` 0.
        inplace: let backward write the gradient over the student's logits (if contiguous) instead of into new memory.
            Whoever reads them after backward reads the gradient, and backward cannot run twice.

    Raises:
        ValueError: if the shapes do not fit one another, or ``vocab_size`` does not fit the logits.
    """
    check_shapes(student_logits, labels)
    if teacher_logits is None:
        return _without_teacher(
            vocab_parallel_cross_entropy(
                student_logits, labels, tp_group=tp_group, inplace=inplace, vocab_size=vocab_size
            )
        )
    if teacher_logits.shape != student_logits.shape:
        shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
        raise ValueError("teacher logits of shape {} do not fit student logits of shape {}".format(*shapes))
    shard = vocab_shard(student_logits.size(-1), vocab_size, tp_group)
    student, teacher = (logits.reshape(labels.numel(), -1) for logits in (student_logits, teacher_logits.detach()))
    distilled = torch.ones_like(labels, dtype=torch.bool) if distill_mask is None else distill_mask.expand(labels.shape)
    setting = _Setting(objective, shard, tp_group, inplace)
    results = _MixCPTLoss.apply(student, teacher, labels.reshape(-1), distilled.reshape(-1), setting)
    return MixCPTLoss(*(result.view(labels.shape) for result in results))


def _without_teacher(ntp: Tensor) -> MixCPTLoss:
    zero = torch.zeros_like(ntp.detach())
    no = torch.zeros_like(ntp, dtype=torch.bool)
    return MixCPTLoss(
        loss=ntp,
        ntp=ntp.detach(),
        lssd=zero,
        swapped=no,
        agreed=no,
        teacher_top=zero,
        student_top=zero,
        teacher_entropy=zero,
    )


class _Setting(NamedTuple):
    """What a call's tokens have in common."""

    objective: Objective
    shard: VocabShard
    tp_group: dist.ProcessGroup | None
    inplace: bool


class _MixCPTLoss(torch.autograd.Function):
    """Of flat tensors: logits ``[tokens, columns]``, labels and mask ``[tokens]``; results ``[tokens]``."""

    @staticmethod
    def forward(
        ctx, student: Tensor, teacher: Tensor, labels: Tensor, distilled: Tensor, setting: _Setting
    ) -> MixCPTLoss:
        student = student.detach()
        objective, divergence, shard = setting.objective, setting.objective.divergence, setting.shard
        # The only collective: from here on every rank knows all that the whole vocabulary says of each token.
        token = token_statistics(student, teacher, labels, shard, setting.tp_group, divergence)
        has_label = shard.is_true(labels)
        swapped = has_label & distilled & (token.top_index != labels) & objective.swaps
        ntp = torch.where(has_label, token.ntp_log_sum - token.student_label, 0.0)
        kl = token_divergence(token, swapped, divergence)
        lssd = torch.where(distilled, kl * divergence.temperature**2, 0.0)
        loss = torch.where(distilled, objective.alpha * ntp + (1 - objective.alpha) * lssd, ntp)
        ctx.save_for_backward(student, teacher, labels, distilled, kl, swapped, *token)
        ctx.setting = setting
        ctx.set_materialize_grads(False)
        results = MixCPTLoss(
            loss=loss,
            ntp=ntp,
            lssd=lssd,
            swapped=swapped,
            # Logits are less their model's maximum, which the teacher has at its top token; a tie counts as agreement.
            agreed=token.student_top == 0,
            teacher_top=(-token.teacher_log_sum).exp(),
            student_top=(token.student_top / divergence.temperature - token.student_log_sum).exp(),
            teacher_entropy=token.teacher_entropy,
        )
        ctx.mark_non_differentiable(*(result for result in results if result is not loss))
        return results

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None, None
        student, teacher, labels, distilled, kl, swapped, *statistics = ctx.saved_tensors
        token = TokenStatistics(*statistics)
        objective, divergence, shard = ctx.setting.objective, ctx.setting.objective.divergence, ctx.setting.shard
        kl_scale = (1 - objective.alpha) * divergence.temperature
        weights = GradientWeights(
            ntp=torch.where(shard.is_true(labels), grad_loss * torch.where(distilled, objective.alpha, 1.0), 0.0),
            kl=torch.where(distilled, grad_loss * kl_scale, 0.0),
            offset=token.teacher_log_sum - token.student_log_sum - kl,
        )
        # No collective: each rank writes the gradient of its columns.
        gradient = gradient_buffer(student, shard, ctx.setting.inplace)
        if shard.num_columns:
            kernels.write_gradient(gradient, student, teacher, token, weights, shard.num_columns, divergence)
            _overwrite_label_and_top(gradient, labels, swapped, token, weights, shard, divergence)
        return gradient, None, None, None, None


def _overwrite_label_and_top(
    gradient: Tensor,
    labels: Tensor,
    swapped: Tensor,
    token: TokenStatistics,
    weights: GradientWeights,
    shard: VocabShard,
    divergence: Divergence,
) -> None:
    """Overwrite the gradient at y and a, where it differs from the formula of the other columns."""
    at_label_target = torch.where(swapped, 0.0, token.teacher_label)
    at_label = gradient_at(token.student_label, at_label_target, token, weights, divergence) - weights.ntp
    at_top = gradient_at(token.student_top, token.teacher_label, token, weights, divergence)
    live = (weights.ntp != 0) | (weights.kl != 0)
    overwrite_at(gradient, shard, labels, at_label, live)
    overwrite_at(gradient, shard, token.top_index, at_top, live & swapped)
