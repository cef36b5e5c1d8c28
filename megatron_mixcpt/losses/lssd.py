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

Nine numbers per token and rank, `statistics.ColumnStatistics`, decide the loss, and with what they say of the whole
vocabulary each rank computes the gradient of its own columns: one all-gather forward, no collective backward.

The forward divergence, on request, needs the same numbers:

    KL(softmax(t~) || p) = E_q[t - s] - (q_a - q_y) (s_y - s_a) - lse_t + lse_s, q = softmax(t)
    d KL / d s_v = p_v - q~_v
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.cross_entropy import check_shapes, gradient_buffer, vocab_parallel_cross_entropy
from megatron_mixcpt.losses.divergence import Direction, Divergence, GradientWeights, TokenStatistics
from megatron_mixcpt.losses.statistics import token_statistics
from megatron_mixcpt.losses.vocab_parallel import VocabShard, overwrite_at, vocab_shard


class MixCPTLoss(NamedTuple):
    """Per token, the labels' shape: losses in nats, float32. Only `loss` carries a gradient.

    Of what the loss is made of anyway: `swapped`, whether the teacher's top logit was exchanged; `agreed`, whether the
    student's largest logit is at the teacher's top token (both bool); and both models' probabilities of that token, at
    the divergence's temperature, float32. `teacher_entropy` is 0 unless asked for. Without a teacher all are 0.
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
    distill_mask: Tensor | None = None,
    divergence: Direction = "reverse",
    temperature: float = 1.0,
    teacher_entropy: bool = False,
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
        divergence, temperature: what `lssd` is, see `Divergence`; the paper's is the reverse one at temperature 1.
            Other temperatures gather 40 bytes.
        teacher_entropy: also measure the entropy of the teacher's distribution, before the swap, which gathers 4 bytes
            more.

    Raises:
        ValueError: if the shapes do not fit one another, or `vocab_size` does not fit the logits; or of `Divergence`.
    """
    kind = Divergence(divergence, temperature, teacher_entropy).check()
    if teacher_logits is None:
        ntp = vocab_parallel_cross_entropy(
            student_logits, labels, tp_group=tp_group, inplace=inplace, vocab_size=vocab_size
        )
        none, no = torch.zeros_like(ntp.detach()), torch.zeros_like(labels, dtype=torch.bool)
        return MixCPTLoss(ntp, ntp.detach(), none, no, no, none, none, none)
    check_shapes(student_logits, labels)
    if teacher_logits.shape != student_logits.shape:
        shapes = tuple(teacher_logits.shape), tuple(student_logits.shape)
        raise ValueError("teacher logits of shape {} do not fit student logits of shape {}".format(*shapes))
    shard = vocab_shard(student_logits.size(-1), vocab_size, tp_group)
    student, teacher = (logits.reshape(labels.numel(), -1) for logits in (student_logits, teacher_logits.detach()))
    distilled = torch.ones_like(labels, dtype=torch.bool) if distill_mask is None else distill_mask.expand(labels.shape)
    results = _MixCPTLoss.apply(
        student, teacher, labels.reshape(-1), distilled.reshape(-1), shard, tp_group, alpha, kind, swap, inplace
    )
    return MixCPTLoss(*(result.view(labels.shape) for result in results))


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
        kind: Divergence,
        swap: bool,
        inplace: bool,
    ) -> tuple[Tensor, ...]:
        student = student.detach()
        token = token_statistics(student, teacher, labels, shard, tp_group, kind)
        has_label = shard.is_true(labels)
        swapped = has_label & distilled & (token.top_index != labels) & swap
        ntp = torch.where(has_label, token.ntp_log_sum - token.student_label, 0.0)
        kl = token_divergence(token, swapped, kind)
        lssd = torch.where(distilled, kl * kind.temperature**2, 0.0)
        loss = torch.where(distilled, alpha * ntp + (1 - alpha) * lssd, ntp)
        ctx.save_for_backward(student, teacher, labels, distilled, kl, swapped, *token)
        ctx.shard, ctx.alpha, ctx.kind, ctx.inplace = shard, alpha, kind, inplace
        results = ntp, lssd, swapped, *_top_token(token, kind)
        ctx.mark_non_differentiable(*results)
        ctx.set_materialize_grads(False)
        return loss, *results

    @staticmethod
    def backward(ctx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 10
        student, teacher, labels, distilled, kl, swapped, *token = ctx.saved_tensors
        token = TokenStatistics(*token)
        kl_scale = (1 - ctx.alpha) * ctx.kind.temperature
        weights = GradientWeights(
            ntp=torch.where(ctx.shard.is_true(labels), grad_loss * torch.where(distilled, ctx.alpha, 1.0), 0.0),
            kl=torch.where(distilled, grad_loss * kl_scale, 0.0),
            offset=token.teacher_log_sum - token.student_log_sum - kl,
        )
        gradient = gradient_buffer(student, ctx.shard, ctx.inplace)
        if ctx.shard.num_columns:
            kernels.write_gradient(gradient, student, teacher, token, weights, ctx.shard.num_columns, ctx.kind)
            _write_exchanged(gradient, labels, swapped, token, weights, ctx.shard, ctx.kind)
        return gradient, *[None] * 9


def _top_token(token: TokenStatistics, kind: Divergence) -> tuple[Tensor, ...]:
    """`agreed`, `teacher_top`, `student_top` and `teacher_entropy` of `MixCPTLoss`."""
    # Logits are less their model's maximum, which the teacher has there; a tie of the student's largest counts as one.
    agreed = token.student_top == 0
    student_top = (token.student_top / kind.temperature - token.student_log_sum).exp()
    return agreed, (-token.teacher_log_sum).exp(), student_top, token.teacher_entropy


def token_divergence(token: TokenStatistics, swapped: Tensor, kind: Divergence) -> Tensor:
    """The divergence of each token, `[tokens]`, from the statistics of the whole vocabulary."""
    scale = 1 / kind.temperature
    student_label, student_top, teacher_label = (
        scale * logit for logit in (token.student_label, token.student_top, token.teacher_label)
    )
    # t_a - t_y is -teacher_label, since t is relative to its maximum t_a.
    if kind.direction == "reverse":
        p_label, p_top = ((logit - token.student_log_sum).exp() for logit in (student_label, student_top))
        exchange, log_sums = (p_label - p_top) * -teacher_label, token.teacher_log_sum - token.student_log_sum
    else:
        q_top, q_label = (-token.teacher_log_sum).exp(), (teacher_label - token.teacher_log_sum).exp()
        exchange = (q_top - q_label) * (student_label - student_top)
        log_sums = token.student_log_sum - token.teacher_log_sum
    return token.mean_difference - torch.where(swapped, exchange, 0.0) + log_sums


def _write_exchanged(
    gradient: Tensor,
    labels: Tensor,
    swapped: Tensor,
    token: TokenStatistics,
    weights: GradientWeights,
    shard: VocabShard,
    kind: Divergence,
) -> None:
    """Overwrite the gradient at a and y, where it differs from the formula of the other columns."""
    at_label_target = torch.where(swapped, 0.0, token.teacher_label)
    at_label = _gradient_at(token.student_label, at_label_target, token, weights, kind) - weights.ntp
    at_top = _gradient_at(token.student_top, token.teacher_label, token, weights, kind)
    live = (weights.ntp != 0) | (weights.kl != 0)
    overwrite_at(gradient, shard, labels, at_label, live)
    overwrite_at(gradient, shard, token.top_index, at_top, live & swapped)


def _gradient_at(
    student: Tensor, teacher: Tensor, token: TokenStatistics, weights: GradientWeights, kind: Divergence
) -> Tensor:
    """The gradient at a column of each token that is not its label, from both models' logits there, `[tokens]`."""
    s, t = student / kind.temperature, teacher / kind.temperature
    probability = (s - token.student_log_sum).exp()
    if kind.direction == "reverse":
        gradient = probability * (s - t + weights.offset)
    else:
        gradient = probability - (t - token.teacher_log_sum).exp()
    return weights.ntp * (student - token.ntp_log_sum).exp() + weights.kl * gradient
