"""The mathematics of the divergence between student and teacher: all that depends on its direction and temperature.

With p = softmax(s) of the student, q = softmax(t) of the teacher, a = argmax t, y the label, and all logits divided by
the temperature:

    reverse: KL(p || q~) = E_p[s - t] - (p_y - p_a) (t_a - t_y) - lse_s + lse_t
    forward: KL(q~ || p) = E_q[t - s] - (q_a - q_y) (s_y - s_a) - lse_t + lse_s

where q~ is q after the swap of a and y; without it the term in the middle is absent. The expectations are made of sums
over columns, which merge: blocks of columns to those of a rank, ranks to the vocabulary (``merge``, for both).

Everything here is plain arithmetic on tensors, so that ``kernels.py`` can compile it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScaling
from megatron_mixcpt.losses.vocab_parallel import merge_cross_sums, merge_exponentials
from megatron_mixcpt.objective import Divergence


class Sums(NamedTuple):
    """What some of the columns say of each token, float32: a block of them, a rank's, or the whole vocabulary.

    Maxima are of the logits as they are; sums are of exp((logit - max) / temperature). ``cross_sum`` is that of
    exp(s') * (s' - t') with s' = (s - max s) / temperature and t' likewise; for the forward divergence, of
    exp(t') * (t' - s'). ``ntp_sum`` is the student's sum at temperature 1, None where ``student_sum`` is that;
    ``teacher_cross`` is the sum of exp(t') * t', None unless the teacher's entropy is wanted.
    """

    student_max: Tensor
    student_sum: Tensor
    teacher_max: Tensor
    teacher_sum: Tensor
    cross_sum: Tensor
    ntp_sum: Tensor | None
    teacher_cross: Tensor | None


class TokenStatistics(NamedTuple):
    """What the whole vocabulary says of each token: float32 ``[tokens]``, ``top_index`` int32.

    Single logits are relative to the maximum of their model, which is the teacher's logit at ``top_index``. Log-sums
    are those of logits divided by the temperature, ``ntp_log_sum`` the student's undivided. ``mean_difference`` is
    E_p[s - t], both divided by the temperature, or E_q[t - s] for the forward divergence. ``teacher_entropy`` is q's,
    in nats; 0 unless wanted.
    """

    student_max: Tensor
    student_log_sum: Tensor
    student_label: Tensor
    student_top: Tensor
    teacher_max: Tensor
    teacher_log_sum: Tensor
    teacher_label: Tensor
    mean_difference: Tensor
    ntp_log_sum: Tensor
    top_index: Tensor
    teacher_entropy: Tensor


class GradientWeights(NamedTuple):
    """Per token, float32: how much next-token prediction and the divergence weigh in the gradient.

    d/ds_v = ntp * (p_v - [v = y]) + kl * (p_v * (s_v - t~_v + offset), or p_v - q~_v), the latter at the temperature.
    """

    ntp: Tensor
    kl: Tensor
    offset: Tensor


def sums_of(student: Tensor, teacher: Tensor, divergence: Divergence) -> Sums:
    """The sums over the last dimension of float32 logits of any shape."""
    student_max, teacher_max = student.amax(-1), teacher.amax(-1)
    s, t = student - student_max.unsqueeze(-1), teacher - teacher_max.unsqueeze(-1)
    ntp_sum = None
    if divergence.temperature != 1:
        ntp_sum = s.exp().sum(-1)
        s, t = s / divergence.temperature, t / divergence.temperature
    exp_s, exp_t = s.exp(), t.exp()
    cross = exp_s * (s - t) if divergence.direction == "reverse" else exp_t * (t - s)
    teacher_cross = (exp_t * t).sum(-1) if divergence.teacher_entropy else None
    return Sums(student_max, exp_s.sum(-1), teacher_max, exp_t.sum(-1), cross.sum(-1), ntp_sum, teacher_cross)


def merge(parts: Sums, divergence: Divergence) -> Sums:
    """Merge the sums of parts of the vocabulary, ``[parts, tokens]``, to those of all their columns, ``[tokens]``."""
    scale = 1 / divergence.temperature
    student_max, student_sum, student_weights = merge_exponentials(parts.student_max, parts.student_sum, scale)
    teacher_max, teacher_sum, teacher_weights = merge_exponentials(parts.teacher_max, parts.teacher_sum, scale)
    # What moves a part's differences, relative to its own maxima, to those of all parts.
    shift = scale * ((parts.student_max - student_max) - (parts.teacher_max - teacher_max))
    if divergence.direction == "reverse":
        cross_sum = merge_cross_sums(student_weights, parts.cross_sum, parts.student_sum, shift)
    else:
        cross_sum = merge_cross_sums(teacher_weights, parts.cross_sum, parts.teacher_sum, -shift)
    ntp_sum = None if parts.ntp_sum is None else merge_exponentials(parts.student_max, parts.ntp_sum)[1]
    teacher_cross = None
    if parts.teacher_cross is not None:
        # A part without columns, whose weight is 0, is as far away as float32 goes, or further.
        shift = torch.where(teacher_weights == 0, 0.0, scale * (parts.teacher_max - teacher_max))
        teacher_cross = merge_cross_sums(teacher_weights, parts.teacher_cross, parts.teacher_sum, shift)
    return Sums(student_max, student_sum, teacher_max, teacher_sum, cross_sum, ntp_sum, teacher_cross)


def mean_difference(sums: Sums, divergence: Divergence) -> Tensor:
    """E_p[s - t] or E_q[t - s], logits relative to their model's maximum, from the sums of the whole vocabulary."""
    return sums.cross_sum / (sums.student_sum if divergence.direction == "reverse" else sums.teacher_sum)


def token_divergence(token: TokenStatistics, swapped: Tensor, divergence: Divergence) -> Tensor:
    """The divergence of each token, ``[tokens]``."""
    scale = 1 / divergence.temperature
    s_label, s_top, t_label = scale * token.student_label, scale * token.student_top, scale * token.teacher_label
    # t_a - t_y is -t_label, since t is relative to its maximum t_a.
    if divergence.direction == "reverse":
        p_label, p_top = (s_label - token.student_log_sum).exp(), (s_top - token.student_log_sum).exp()
        exchange, log_sums = (p_label - p_top) * -t_label, token.teacher_log_sum - token.student_log_sum
    else:
        q_top, q_label = (-token.teacher_log_sum).exp(), (t_label - token.teacher_log_sum).exp()
        exchange, log_sums = (q_top - q_label) * (s_label - s_top), token.student_log_sum - token.teacher_log_sum
    return token.mean_difference - torch.where(swapped, exchange, 0.0) + log_sums


def gradient_at(
    student: Tensor, teacher: Tensor, token: TokenStatistics, weights: GradientWeights, divergence: Divergence
) -> Tensor:
    """The gradient at one column of each token, other than its label, from both models' logits there, ``[tokens]``."""
    s, t = student / divergence.temperature, teacher / divergence.temperature
    probability = (s - token.student_log_sum).exp()
    if divergence.direction == "reverse":
        gradient = probability * (s - t + weights.offset)
    else:
        gradient = probability - (t - token.teacher_log_sum).exp()
    return weights.ntp * (student - token.ntp_log_sum).exp() + weights.kl * gradient


class GradientRows(NamedTuple):
    """What :func:`gradient_of_rows` needs of each token, float32 ``[tokens, 1]``; ``kl_offset`` is kl * offset."""

    student_max: Tensor
    teacher_max: Tensor
    student_log_sum: Tensor
    teacher_log_sum: Tensor
    ntp_log_sum: Tensor
    ntp: Tensor
    kl: Tensor
    kl_offset: Tensor

    @classmethod
    def of(cls, token: TokenStatistics, weights: GradientWeights) -> "GradientRows":
        """The rows of these tokens."""
        # Not 0 * offset: the offset of an inert token may be anything.
        kl_offset = torch.where(weights.kl == 0, 0.0, weights.kl * weights.offset)
        numbers = {name: getattr(token, name) for name in cls._fields if hasattr(token, name)}
        numbers |= {"ntp": weights.ntp, "kl": weights.kl, "kl_offset": kl_offset}
        return cls(**{name: number.unsqueeze(1) for name, number in numbers.items()})


def gradient_of_rows(
    student: Tensor, teacher: Tensor, rows: GradientRows, divergence: Divergence, scaling: LogitScaling = UNSCALED
) -> Tensor:
    """The formula of ``GradientWeights`` for columns ``[tokens, columns]``, without label and swap.

    From both models' logits; the gradient is that of the products from which ``scaling`` makes the student's. The
    formula is that of :func:`gradient_at`, arranged for as few operations per column. A row whose weights are 0 gets 0,
    even if its logits are not finite.
    """
    s, t = student - rows.student_max, teacher - rows.teacher_max
    extra: Tensor | float = 0.0
    ntp: Tensor | float = rows.ntp
    if divergence.temperature != 1:
        extra, ntp = rows.ntp * (s - rows.ntp_log_sum).exp(), 0.0
        s, t = s / divergence.temperature, t / divergence.temperature
    probability = (s - rows.student_log_sum).exp()
    if divergence.direction == "reverse":
        value = probability * ((ntp + rows.kl_offset) + rows.kl * (s - t))
    else:
        value = rows.kl * (probability - (t - rows.teacher_log_sum).exp()) + ntp * probability
    value = scaling.gradient_of_products(value + extra, student)
    return torch.where((rows.ntp == 0) & (rows.kl == 0), 0.0, value)
