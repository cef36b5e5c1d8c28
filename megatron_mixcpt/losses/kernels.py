"""The passes over the logits themselves: one that reads them forward, one that writes the gradient backward.

Everything that costs time or memory is here, on `[tokens, columns]` tensors of one rank; the rest of the losses works
on a few numbers per token. Each pass is one plain function of tensors. `compiled.run` compiles it for the tensors'
device, C++ on a CPU and Triton on a GPU from this one source; without a compiler it runs as it is, in chunks of rows.

The forward pass takes a row in blocks of columns that stay in the first-level cache between finding their maximum and
adding up their exponentials, so that logits are read from memory once; a block's sums are merged as the ranks' are.
Sums of sums also lose less to rounding: a running float32 sum over 150,000 columns stops noticing the small ones.
"""

from functools import cache

import torch
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.divergence import Divergence, GradientWeights, TokenStatistics
from megatron_mixcpt.losses.vocab_parallel import merge_cross_sums, merge_exponentials

# Columns in a block: 4 KiB of each model's logits as float32.
BLOCK = 1024


def exponential_statistics(logits: Tensor, num_columns: int) -> tuple[Tensor, ...]:
    """Per row, of the first `num_columns` columns: maximum and sum of exp(logit - maximum), float32 `[tokens]`."""
    return compiled.run(_exponential_statistics, (logits,), num_columns)


def write_cross_entropy_gradient(
    gradient: Tensor, logits: Tensor, maximum: Tensor, log_sum: Tensor, weight: Tensor, num_columns: int
) -> None:
    """Write weight * softmax(logits) into the first `num_columns` columns of `gradient`, which may be `logits` itself.

    `maximum`, `log_sum` (of the logits less their maximum) and `weight` are float32 `[tokens]`. A row of weight 0 gets
    0, even if its logits are not finite.
    """
    coefficients = (part.unsqueeze(1) for part in (maximum, log_sum, weight))
    compiled.run(_write_cross_entropy_gradient, (gradient, logits, *coefficients), num_columns)


def divergence_statistics(student: Tensor, teacher: Tensor, num_columns: int, kind: Divergence) -> tuple[Tensor, ...]:
    """Per row what the divergence needs of the first `num_columns` columns of the logits `[tokens, columns]`.

    Returns:
        student maximum, student sum, teacher maximum, teacher sum, cross sum (all float32 `[tokens]`, as defined by
        `statistics.ColumnStatistics`), the column of the teacher's first largest logit, int64 `[tokens]`; at a
        temperature other than 1 `ntp_sum`; and if the teacher's entropy is asked for `teacher_cross`.
    """
    return compiled.run(_divergence_reader(kind), (student, teacher), num_columns)


def write_gradient(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    token: TokenStatistics,
    weights: GradientWeights,
    num_columns: int,
    kind: Divergence,
) -> None:
    """Write `GradientWeights`' formula, without label and swap, into the first `num_columns` of `gradient`.

    `gradient` may be `student` itself. A row whose weights are 0 gets 0, even if its logits are not finite.
    """
    # Not 0 * offset: the offset of an inert token may be anything.
    offset = torch.where(weights.kl == 0, 0.0, weights.kl * weights.offset)
    rows = (
        token.student_max,
        token.teacher_max,
        token.student_log_sum,
        token.teacher_log_sum,
        token.ntp_log_sum,
        weights.ntp,
        weights.kl,
        offset,
    )
    rows = (gradient, student, teacher, *(part.unsqueeze(1) for part in rows))
    compiled.run(_gradient_writer(kind), rows, num_columns)


def _exponential_statistics(logits: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    blocks = [_block_exponentials(block.float()) for block in _blocks(logits, num_columns)]
    maxima, sums = _join_blocks(blocks)
    return merge_exponentials(maxima, sums)[:2]


@cache
def _divergence_reader(kind: Divergence) -> compiled.RowFunction:
    """The forward pass for one kind of divergence."""
    scale = 1 / kind.temperature

    def read(student: Tensor, teacher: Tensor, num_columns: int) -> tuple[Tensor, ...]:
        pairs = zip(_blocks(student, num_columns), _blocks(teacher, num_columns), strict=True)
        blocks = [_block_divergences(s.float(), t.float(), kind) for s, t in pairs]
        student_maxima, student_sums, teacher_maxima, teacher_sums, cross_sums, *more_sums = _join_blocks(blocks)
        student_max, student_sum, student_weights = merge_exponentials(student_maxima, student_sums, scale)
        teacher_max, teacher_sum, teacher_weights = merge_exponentials(teacher_maxima, teacher_sums, scale)
        shift = scale * ((student_maxima - student_max) - (teacher_maxima - teacher_max))
        if kind.direction == "reverse":
            cross_sum = merge_cross_sums(student_weights, cross_sums, student_sums, shift)
        else:
            cross_sum = merge_cross_sums(teacher_weights, cross_sums, teacher_sums, -shift)
        top = _first_largest(teacher, teacher_maxima.argmax(0), num_columns)
        more = []
        if kind.temperature != 1:
            more.append(merge_exponentials(student_maxima, more_sums[0])[1])
        if kind.teacher_entropy:
            shift = scale * (teacher_maxima - teacher_max)
            more.append(merge_cross_sums(teacher_weights, more_sums[-1], teacher_sums, shift))
        return student_max, student_sum, teacher_max, teacher_sum, cross_sum, top, *more

    return read


def _block_divergences(student: Tensor, teacher: Tensor, kind: Divergence) -> tuple[Tensor, ...]:
    student_max, teacher_max = student.amax(-1), teacher.amax(-1)
    student, teacher = student - student_max.unsqueeze(-1), teacher - teacher_max.unsqueeze(-1)
    more = []
    if kind.temperature != 1:
        more.append(student.exp().sum(-1))
        student, teacher = student / kind.temperature, teacher / kind.temperature
    exp_student, exp_teacher = student.exp(), teacher.exp()
    reverse = kind.direction == "reverse"
    cross = exp_student * (student - teacher) if reverse else exp_teacher * (teacher - student)
    if kind.teacher_entropy:
        more.append((exp_teacher * teacher).sum(-1))
    return student_max, exp_student.sum(-1), teacher_max, exp_teacher.sum(-1), cross.sum(-1), *more


def _blocks(logits: Tensor, num_columns: int) -> list[Tensor]:
    """The first `num_columns` columns as `[tokens, blocks, BLOCK]`, and what is left of them as `[tokens, 1, rest]`."""
    whole = num_columns // BLOCK * BLOCK
    blocks = [logits[:, :whole].unflatten(1, (-1, BLOCK))] if whole else []
    return blocks + ([logits[:, None, whole:num_columns]] if whole < num_columns else [])


def _join_blocks(blocks: list[tuple[Tensor, ...]]) -> list[Tensor]:
    """Each statistic of all blocks as `[blocks, tokens]`, from tuples of `[tokens, blocks]`."""
    return [torch.cat(parts, 1).T for parts in zip(*blocks, strict=True)]


def _block_exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    maximum = logits.amax(-1)
    return maximum, (logits - maximum.unsqueeze(-1)).exp().sum(-1)


def _first_largest(logits: Tensor, block: Tensor, num_columns: int) -> Tensor:
    """The column of the first largest logit in the given block of each row, `[tokens]`."""
    columns = block.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=logits.device)
    # The last block may be shorter: its last column, repeated, is never the first largest by its repetitions.
    columns = columns.clamp(max=num_columns - 1)
    return block * BLOCK + logits.gather(1, columns).argmax(1)


def _write_cross_entropy_gradient(
    gradient: Tensor, student: Tensor, student_max: Tensor, log_sum: Tensor, a: Tensor, num_columns: int
) -> None:
    probability = (student[:, :num_columns].float() - student_max - log_sum).exp()
    gradient[:, :num_columns] = torch.where(a == 0, 0.0, probability * a)


@cache
def _gradient_writer(kind: Divergence) -> compiled.RowFunction:
    """The backward pass for one kind of divergence."""

    def write(
        gradient: Tensor,
        student: Tensor,
        teacher: Tensor,
        student_max: Tensor,
        teacher_max: Tensor,
        student_log_sum: Tensor,
        teacher_log_sum: Tensor,
        ntp_log_sum: Tensor,
        ntp: Tensor,
        kl: Tensor,
        offset: Tensor,
        num_columns: int,
    ) -> None:
        s, t = student[:, :num_columns].float() - student_max, teacher[:, :num_columns].float() - teacher_max
        extra, ntp_weight = 0.0, ntp
        if kind.temperature != 1:
            extra, ntp_weight = ntp * (s - ntp_log_sum).exp(), 0.0
            s, t = s / kind.temperature, t / kind.temperature
        probability = (s - student_log_sum).exp()
        if kind.direction == "reverse":
            value = probability * ((ntp_weight + offset) + kl * (s - t))
        else:
            value = kl * (probability - (t - teacher_log_sum).exp()) + ntp_weight * probability
        gradient[:, :num_columns] = torch.where((ntp == 0) & (kl == 0), 0.0, value + extra)

    return write
