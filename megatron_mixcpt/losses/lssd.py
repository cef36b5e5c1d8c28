"""Logit swap self-distillation (Mix-CPT, arXiv 2407.10804): next-token prediction plus a reverse KL divergence.

With student logits s, logits t of the frozen base model and the label y, per token:

    ntp  = -log p_y, p = softmax(s)                                                  (Eq. 1)
    t~   = t with the entries of a = argmax t and y exchanged, if they differ        (Eq. 4)
    lssd = KL(p || softmax(t~)) = sum_v p_v (log p_v - log softmax(t~)_v)            (Eq. 5 and 6, as the full sum)
    loss = alpha * ntp + (1 - alpha) * lssd                                          (Eq. 7)

The exchange changes neither the teacher's maximum nor its log-sum-exp, so it needs no pass over the logits. With both
models' logits taken relative to their maxima:

    lssd = E_p[s - t] - (p_y - p_a) (t_a - t_y) - lse_s + lse_t
    d loss / d s_v = alpha (p_v - [v = y]) + (1 - alpha) p_v (s_v - t~_v - lse_s + lse_t - lssd)

Nine numbers per token and rank, `ColumnStatistics`, decide the loss, and with what they say of the whole vocabulary
each rank computes the gradient of its own columns: one all-gather forward, no collective backward.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.cross_entropy import check_shapes, gradient_buffer, vocab_parallel_cross_entropy
from megatron_mixcpt.losses.vocab_parallel import (
    LOWEST,
    VocabShard,
    gather,
    logits_at,
    merge_cross_sums,
    merge_exponentials,
    overwrite_at,
    vocab_shard,
)


class MixCPTLoss(NamedTuple):
    """Per-token losses in nats, float32, the labels' shape; `swapped` is bool. Only `loss` carries a gradient."""

    loss: Tensor
    ntp: Tensor
    lssd: Tensor
    swapped: Tensor


class ColumnStatistics(NamedTuple):
    """What a rank's columns say of each token: float32 `[tokens]`, `top_index` int32. No columns: `LOWEST` and 0.

    `..._sum` is the sum of exp(logit - max), `cross_sum` that of exp(s - max s) * ((s - max s) - (t - max t)).
    `top_index` is the vocabulary index of the teacher's largest logit, the lowest index if several are equal, and
    `student_top` the student's logit there. `..._label` is the label's logit, 0 if it is not among these columns.
    """

    student_max: Tensor
    student_sum: Tensor
    student_label: Tensor
    teacher_max: Tensor
    teacher_sum: Tensor
    teacher_label: Tensor
    cross_sum: Tensor
    student_top: Tensor
    top_index: Tensor


class TokenStatistics(NamedTuple):
    """What the whole vocabulary says of each token: float32 `[tokens]`, `top_index` int32; logits less their maximum.

    `..._log_sum` is the log-sum-exp of these logits; `mean_difference` is E_p[s - t].
    """

    student_max: Tensor
    student_log_sum: Tensor
    student_label: Tensor
    student_top: Tensor
    teacher_max: Tensor
    teacher_log_sum: Tensor
    teacher_label: Tensor
    mean_difference: Tensor
    top_index: Tensor


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
    distill_mask: Tensor | None = None,
) -> MixCPTLoss:
    """alpha * NTP + (1 - alpha) * LSSD of every token (Mix-CPT, Eq. 7), over a vocabulary sharded across `tp_group`.

    The softmaxes are taken in float32 whatever the logits' dtype. One all-gather of 36 bytes per token and rank (12
    without a teacher) forward, no collective backward. Saved for backward: both logits and a few numbers per token.
    A token whose incoming gradient is 0 gets gradient 0, whatever its logits and label.

    Args:
        student_logits: `[s, b, v/tp]` (any leading shape), float32, bfloat16 or float16, finite.
        teacher_logits: the same shape; no gradient flows to it. None: `loss` is `ntp` for every token, `lssd` is 0.
        labels: int64 `[s, b]`. A label outside `[0, vocab_size)` is no label: `ntp` is 0 there and nothing is swapped.
        alpha: weight of NTP; the paper's is 0.8.
        tp_group: the ranks that hold the vocabulary, in the order of their columns; None means this one alone.
        swap: exchange the teacher's top logit and the label's (LSSD); False distils from the teacher as it is (`kd`).
        inplace: let backward write the gradient over the student's logits (if contiguous) instead of into new memory.
            Whoever reads them after backward reads the gradient, and backward cannot run twice.
        vocab_size: number of true columns over all ranks; the rest, at the end, is padding: no probability, gradient 0.
            None: no padding.
        distill_mask: bool, broadcast to the labels' shape (`[b]`: by sample). Where False, `loss` is `ntp`, `lssd` 0.

    Raises:
        ValueError: if the shapes do not fit one another, or `vocab_size` does not fit the logits.
    """
    if teacher_logits is None:
        ntp = vocab_parallel_cross_entropy(
            student_logits, labels, tp_group=tp_group, inplace=inplace, vocab_size=vocab_size
        )
        return MixCPTLoss(ntp, ntp.detach(), torch.zeros_like(ntp), torch.zeros_like(labels, dtype=torch.bool))
    check_shapes(student_logits, labels)
    if teacher_logits.shape != student_logits.shape:
        shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
        raise ValueError("teacher logits of shape {} do not fit student logits of shape {}".format(*shapes))
    shard = vocab_shard(student_logits.size(-1), vocab_size, tp_group)
    student, teacher = (logits.reshape(labels.numel(), -1) for logits in (student_logits, teacher_logits.detach()))
    distilled = torch.ones_like(labels, dtype=torch.bool) if distill_mask is None else distill_mask.expand(labels.shape)
    results = _MixCPTLoss.apply(
        student, teacher, labels.reshape(-1), distilled.reshape(-1), shard, tp_group, alpha, swap, inplace
    )
    return MixCPTLoss(*(result.view(labels.shape) for result in results))


class GradientWeights(NamedTuple):
    """Per token, float32: d/ds_v = ntp * (p_v - [v = y]) + kl * p_v * (s_v - t~_v + offset)."""

    ntp: Tensor
    kl: Tensor
    offset: Tensor


class _MixCPTLoss(torch.autograd.Function):
    """Of flat tensors: logits `[tokens, columns]`, labels and mask `[tokens]`; results `[tokens]`."""

    @staticmethod
    def forward(
        ctx,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        distilled: Tensor,
        shard: VocabShard,
        tp_group: dist.ProcessGroup | None,
        alpha: float,
        swap: bool,
        inplace: bool,
    ) -> MixCPTLoss:
        student = student.detach()
        local = column_statistics(student, teacher, labels, shard)
        token = merge_statistics(ColumnStatistics(*gather(list(local), tp_group)))
        result = token_losses(token, labels, distilled, shard, alpha, swap)
        ctx.save_for_backward(student, teacher, labels, distilled, result.lssd, result.swapped, *token)
        ctx.shard, ctx.alpha, ctx.inplace = shard, alpha, inplace
        ctx.mark_non_differentiable(result.ntp, result.lssd, result.swapped)
        ctx.set_materialize_grads(False)
        return tuple(result)

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 9
        student, teacher, labels, distilled, lssd, swapped, *token = ctx.saved_tensors
        token = TokenStatistics(*token)
        weights = gradient_weights(grad_loss, token, lssd, labels, distilled, ctx.shard, ctx.alpha)
        gradient = gradient_buffer(student, ctx.shard, ctx.inplace)
        write_gradient(gradient, student, teacher, labels, swapped, token, weights, ctx.shard)
        return gradient, *[None] * 8


def column_statistics(student: Tensor, teacher: Tensor, labels: Tensor, shard: VocabShard) -> ColumnStatistics:
    """The statistics of this rank's true columns of the logits `[tokens, columns]`."""
    if not shard.num_columns:
        lowest, zero = student.new_tensor([LOWEST, 0.0], dtype=torch.float32).unsqueeze(1).expand(2, len(labels))
        return ColumnStatistics(lowest, zero, zero, lowest, zero, zero, zero, zero, zero.int())
    statistics = kernels.divergence_statistics(student, teacher, shard.num_columns)
    student_max, student_sum, teacher_max, teacher_sum, cross_sum, top = statistics
    top_index = (top + shard.first).int()
    student_label, teacher_label = logits_at(student, shard, labels), logits_at(teacher, shard, labels)
    student_top = logits_at(student, shard, top_index)
    return ColumnStatistics(
        student_max,
        student_sum,
        student_label,
        teacher_max,
        teacher_sum,
        teacher_label,
        cross_sum,
        student_top,
        top_index,
    )


def merge_statistics(ranks: ColumnStatistics) -> TokenStatistics:
    """The statistics of the whole vocabulary from those of each rank, stacked to `[ranks, tokens]`."""
    student_max, student_sum, weights = merge_exponentials(ranks.student_max, ranks.student_sum)
    teacher_max, teacher_sum, _ = merge_exponentials(ranks.teacher_max, ranks.teacher_sum)
    # What moves a rank's differences, relative to its own maxima, to those of the whole vocabulary.
    shift = (ranks.student_max - student_max) - (ranks.teacher_max - teacher_max)
    difference = merge_cross_sums(weights, ranks.cross_sum, ranks.student_sum, shift) / student_sum
    # Of equal maxima argmax takes the first, the rank with the lowest columns.
    owner = ranks.teacher_max.argmax(0, keepdim=True)
    return TokenStatistics(
        student_max=student_max,
        student_log_sum=student_sum.log(),
        student_label=ranks.student_label.sum(0) - student_max,
        student_top=ranks.student_top.gather(0, owner).squeeze(0) - student_max,
        teacher_max=teacher_max,
        teacher_log_sum=teacher_sum.log(),
        teacher_label=ranks.teacher_label.sum(0) - teacher_max,
        mean_difference=difference,
        top_index=ranks.top_index.gather(0, owner).squeeze(0),
    )


def token_losses(
    token: TokenStatistics, labels: Tensor, distilled: Tensor, shard: VocabShard, alpha: float, swap: bool
) -> MixCPTLoss:
    """The losses of each token, `[tokens]`, from the statistics of the whole vocabulary."""
    has_label = shard.is_true(labels)
    swapped = has_label & distilled & (token.top_index != labels) & swap
    p_label, p_top = ((logit - token.student_log_sum).exp() for logit in (token.student_label, token.student_top))
    # The teacher's label logit is relative to its maximum, which is its logit at a: t_a - t_y.
    exchange = torch.where(swapped, (p_label - p_top) * -token.teacher_label, 0.0)
    lssd = token.mean_difference - exchange - token.student_log_sum + token.teacher_log_sum
    lssd = torch.where(distilled, lssd, 0.0)
    ntp = torch.where(has_label, token.student_log_sum - token.student_label, 0.0)
    loss = torch.where(distilled, alpha * ntp + (1 - alpha) * lssd, ntp)
    return MixCPTLoss(loss, ntp, lssd, swapped)


def gradient_weights(
    grad_loss: Tensor,
    token: TokenStatistics,
    lssd: Tensor,
    labels: Tensor,
    distilled: Tensor,
    shard: VocabShard,
    alpha: float,
) -> GradientWeights:
    """How much each part of the gradient weighs, from the gradient `[tokens]` that reaches the loss."""
    return GradientWeights(
        ntp=torch.where(shard.is_true(labels), grad_loss * torch.where(distilled, alpha, 1.0), 0.0),
        kl=torch.where(distilled, grad_loss * (1 - alpha), 0.0),
        offset=token.teacher_log_sum - token.student_log_sum - lssd,
    )


def write_gradient(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    swapped: Tensor,
    token: TokenStatistics,
    weights: GradientWeights,
    shard: VocabShard,
) -> None:
    """Write the gradient of this rank's true columns into `gradient` `[tokens, columns]`, which may be `student`.

    All columns but a and y follow one formula; those two are computed from the token's statistics and written over it.
    """
    if not shard.num_columns:
        return
    # Not 0 * offset: the offset of an inert token may be anything.
    a = weights.ntp + torch.where(weights.kl == 0, 0.0, weights.kl * weights.offset)
    coefficients = (token.student_max, token.student_log_sum, a, token.teacher_max, weights.kl)
    kernels.write_gradient(gradient, student, teacher, coefficients, shard.num_columns)

    p_label, p_top = ((logit - token.student_log_sum).exp() for logit in (token.student_label, token.student_top))
    label_target = torch.where(swapped, 0.0, token.teacher_label)
    at_label = p_label * (a + weights.kl * (token.student_label - label_target)) - weights.ntp
    at_top = p_top * (a + weights.kl * (token.student_top - token.teacher_label))
    live = (weights.ntp != 0) | (weights.kl != 0)
    overwrite_at(gradient, shard, labels, at_label, live)
    overwrite_at(gradient, shard, token.top_index, at_top, live & swapped)
