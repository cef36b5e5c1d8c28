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

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import compiled, kernels
from megatron_mixcpt.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_mixcpt.losses.divergence import (
    GradientRows,
    GradientWeights,
    TokenStatistics,
    gradient_at,
    token_divergence,
)
from megatron_mixcpt.losses.logit_scaling import BOTH_UNSCALED, UNSCALED, LogitScaling, LogitScalings
from megatron_mixcpt.losses.statistics import gathered_statistics, token_statistics
from megatron_mixcpt.losses.vocab_parallel import VocabShard, check_shapes, gradient_buffer, is_true, vocab_shard
from megatron_mixcpt.objective import Objective


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
    scalings: LogitScalings = BOTH_UNSCALED,
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
        scalings: what each model makes of what is given as its logits, and the gradient is of: swap, losses and
            probabilities are those of the scaled logits.

    Raises:
        ValueError: if the shapes do not fit one another, or ``vocab_size`` does not fit the logits.
    """
    check_shapes(student_logits, labels)
    if teacher_logits is None:
        return _without_teacher(
            vocab_parallel_cross_entropy(
                student_logits,
                labels,
                tp_group=tp_group,
                inplace=inplace,
                vocab_size=vocab_size,
                scaling=scalings.student,
            )
        )
    if teacher_logits.shape != student_logits.shape:
        shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
        raise ValueError("teacher logits of shape {} do not fit student logits of shape {}".format(*shapes))
    shard = vocab_shard(student_logits.size(-1), vocab_size, tp_group)
    student, teacher = (logits.reshape(labels.numel(), -1) for logits in (student_logits, teacher_logits.detach()))
    distilled = torch.ones_like(labels, dtype=torch.bool) if distill_mask is None else distill_mask.expand(labels.shape)
    setting = _Setting(objective, shard, tp_group, inplace, scalings)
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
    scalings: LogitScalings


class _MixCPTLoss(torch.autograd.Function):
    """Of flat tensors: logits ``[tokens, columns]``, labels and mask ``[tokens]``; results ``[tokens]``."""

    @staticmethod
    def forward(
        ctx, student: Tensor, teacher: Tensor, labels: Tensor, distilled: Tensor, setting: _Setting
    ) -> MixCPTLoss:
        student = student.detach()
        objective, shard = setting.objective, setting.shard
        # The only collective: from here on every rank knows all that the whole vocabulary says of each token.
        gathered = gathered_statistics(
            student, teacher, labels, shard, setting.tp_group, objective.divergence, setting.scalings
        )
        losses = _losses(objective, shard.vocab_size, student.size(1), setting.scalings.student)
        of_tokens = compiled.run_on_tokens(losses, (gathered, labels, distilled))
        results = MixCPTLoss(*of_tokens[: len(MixCPTLoss._fields)])
        kl, *token = of_tokens[len(MixCPTLoss._fields) :]
        ctx.save_for_backward(student, teacher, labels, distilled, kl, results.swapped, *token)
        ctx.setting = setting
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(result for result in results if result is not results.loss))
        return results

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None, None
        student, teacher, *of_tokens = ctx.saved_tensors
        objective, shard, labels, token = ctx.setting.objective, ctx.setting.shard, of_tokens[0], of_tokens[4:]
        scalings = ctx.setting.scalings
        # No collective: each rank writes the gradient of its columns.
        gradient = gradient_buffer(student, shard, ctx.setting.inplace)
        if shard.num_columns:
            prepare = _gradient_rows(objective, shard.vocab_size, scalings.student)
            prepared = compiled.run_on_tokens(prepare, (grad_loss, *of_tokens))
            rows = GradientRows(*prepared[: len(GradientRows._fields)])
            at_label, live, at_top, live_and_swapped = prepared[len(GradientRows._fields) :]
            kernels.write_gradient(gradient, student, teacher, rows, shard.num_columns, objective.divergence, scalings)
            # At y and a the gradient differs from the formula of the other columns.
            top_index = TokenStatistics(*token).top_index
            entries = (labels, at_label, live), (top_index, at_top, live_and_swapped)
            kernels.overwrite_columns(gradient, shard, *entries)
        return gradient, None, None, None, None


@cache
def _losses(
    objective: Objective, vocab_size: int, columns_per_rank: int, scaling: LogitScaling
) -> Callable[..., tuple[Tensor, ...]]:
    """From what the ranks gathered to the fields of ``MixCPTLoss``, the divergence, and ``TokenStatistics``."""
    divergence, alpha = objective.divergence, objective.alpha
    # A logit that is computed in two places may be rounded differently in each, once compiled.
    tied = 0.0 if scaling == UNSCALED else 2.0**-21

    def compute(gathered: Tensor, labels: Tensor, distilled: Tensor) -> tuple[Tensor, ...]:
        token = token_statistics(gathered, divergence, columns_per_rank)
        has_label = is_true(labels, vocab_size)
        swapped = has_label & distilled & (token.top_index != labels) & objective.swaps
        ntp = torch.where(has_label, token.ntp_log_sum - token.student_label, 0.0)
        kl = token_divergence(token, swapped, divergence)
        lssd = torch.where(distilled, kl * divergence.temperature**2, 0.0)
        results = MixCPTLoss(
            loss=torch.where(distilled, alpha * ntp + (1 - alpha) * lssd, ntp),
            ntp=ntp,
            lssd=lssd,
            swapped=swapped,
            # Logits are less their model's maximum, which the teacher has at its top token; a tie counts as agreement.
            agreed=token.student_top >= -tied * token.student_max.abs(),
            teacher_top=(-token.teacher_log_sum).exp(),
            student_top=(token.student_top / divergence.temperature - token.student_log_sum).exp(),
            teacher_entropy=token.teacher_entropy,
        )
        return *results, kl, *token

    return compute


@cache
def _gradient_rows(objective: Objective, vocab_size: int, scaling: LogitScaling) -> Callable[..., tuple[Tensor, ...]]:
    """From the incoming gradient to ``GradientRows``, and value and mask of what is written at the label and the top.

    Values are those of the formula at one column; the mask of the top leaves it alone unless it was swapped.
    """
    divergence, alpha = objective.divergence, objective.alpha
    kl_scale = (1 - alpha) * divergence.temperature

    def compute(
        grad_loss: Tensor, labels: Tensor, distilled: Tensor, kl: Tensor, swapped: Tensor, *statistics: Tensor
    ) -> tuple[Tensor, ...]:
        token = TokenStatistics(*statistics)
        has_label = is_true(labels, vocab_size)
        weights = GradientWeights(
            ntp=torch.where(has_label, grad_loss * torch.where(distilled, alpha, 1.0), 0.0),
            kl=torch.where(distilled, grad_loss * kl_scale, 0.0),
            offset=token.teacher_log_sum - token.student_log_sum - kl,
        )
        live = (weights.ntp != 0) | (weights.kl != 0)
        at_label_target = torch.where(swapped, 0.0, token.teacher_label)
        at_label = gradient_at(token.student_label, at_label_target, token, weights, divergence) - weights.ntp
        at_top = gradient_at(token.student_top, token.teacher_label, token, weights, divergence)
        at_label = scaling.gradient_of_products(at_label, token.student_label + token.student_max)
        at_top = scaling.gradient_of_products(at_top, token.student_top + token.student_max)
        return *GradientRows.of(token, weights), at_label, live, at_top, live & swapped

    return compute
