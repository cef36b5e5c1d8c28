"""The passes over the logits themselves: one that reads them forward, one that writes the gradient backward.

Everything that costs time or memory is here, on `[tokens, columns]` tensors of one rank; the rest of the losses works
on a few numbers per token. Each pass is one plain function of tensors. `compiled.run` compiles it for the tensors'
device, C++ on a CPU and Triton on a GPU from this one source; without a compiler it runs as it is, in chunks of rows.

The forward pass takes a row in blocks of columns that stay in the first-level cache between finding their maximum and
adding up their exponentials, so that logits are read from memory once; a block's sums are merged as the ranks' are.
Sums of sums also lose less to rounding: a running float32 sum over 150,000 columns stops noticing the small ones.
"""

import torch
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.vocab_parallel import merge_cross_sums, merge_exponentials

# Columns in a block: 4 KiB of each model's logits as float32.
BLOCK = 1024


def exponential_statistics(logits: Tensor, num_columns: int) -> tuple[Tensor, ...]:
    """Per row, of the first `num_columns` columns: maximum and sum of exp(logit - maximum), float32 `[tokens]`."""
    return compiled.run(_exponential_statistics, (logits,), num_columns)


def divergence_statistics(student: Tensor, teacher: Tensor, num_columns: int) -> tuple[Tensor, ...]:
    """Per row what the reverse KL needs of the first `num_columns` columns of the logits `[tokens, columns]`.

    Returns:
        student maximum, student sum, teacher maximum, teacher sum, cross sum (all float32 `[tokens]`, as defined by
        `lssd.ColumnStatistics`), and the column of the teacher's first largest logit, int64 `[tokens]`.
    """
    return compiled.run(_divergence_statistics, (student, teacher), num_columns)


def write_gradient(
    gradient: Tensor, student: Tensor, teacher: Tensor | None, coefficients: tuple[Tensor, ...], num_columns: int
) -> None:
    """Write p * (a + b * (s - t)) into the first `num_columns` columns of `gradient`, which may be `student` itself.

    p is the student's softmax, s and t are the two models' logits less their maxima; without a teacher it is p * a.
    Rows whose a and b are 0 get 0, even if their logits are not finite.

    Args:
        coefficients: float32 `[tokens]` each: student maximum, log of the student's sum, a; with a teacher also its
            maximum and b.
    """
    coefficients = tuple(coefficient.unsqueeze(1) for coefficient in coefficients)
    if teacher is None:
        compiled.run(_write_cross_entropy_gradient, (gradient, student, *coefficients), num_columns)
    else:
        compiled.run(_write_distilled_gradient, (gradient, student, teacher, *coefficients), num_columns)


def _exponential_statistics(logits: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    blocks = [_block_exponentials(block.float()) for block in _blocks(logits, num_columns)]
    maxima, sums = _join_blocks(blocks)
    return merge_exponentials(maxima, sums)[:2]


def _divergence_statistics(student: Tensor, teacher: Tensor, num_columns: int) -> tuple[Tensor, ...]:
    pairs = zip(_blocks(student, num_columns), _blocks(teacher, num_columns), strict=True)
    blocks = [_block_divergences(s.float(), t.float()) for s, t in pairs]
    student_maxima, student_sums, teacher_maxima, teacher_sums, cross_sums = _join_blocks(blocks)
    student_max, student_sum, weights = merge_exponentials(student_maxima, student_sums)
    teacher_max, teacher_sum, _ = merge_exponentials(teacher_maxima, teacher_sums)
    shift = (student_maxima - student_max) - (teacher_maxima - teacher_max)
    cross_sum = merge_cross_sums(weights, cross_sums, student_sums, shift)
    top = _first_largest(teacher, teacher_maxima.argmax(0), num_columns)
    return student_max, student_sum, teacher_max, teacher_sum, cross_sum, top


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


def _block_divergences(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    student_max, teacher_max = student.amax(-1), teacher.amax(-1)
    student, teacher = student - student_max.unsqueeze(-1), teacher - teacher_max.unsqueeze(-1)
    exp_student = student.exp()
    cross_sum = (exp_student * (student - teacher)).sum(-1)
    return student_max, exp_student.sum(-1), teacher_max, teacher.exp().sum(-1), cross_sum


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


def _write_distilled_gradient(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    student_max: Tensor,
    log_sum: Tensor,
    a: Tensor,
    teacher_max: Tensor,
    b: Tensor,
    num_columns: int,
) -> None:
    s, t = student[:, :num_columns].float() - student_max, teacher[:, :num_columns].float() - teacher_max
    probability = (s - log_sum).exp()
    gradient[:, :num_columns] = torch.where((a == 0) & (b == 0), 0.0, probability * (a + b * (s - t)))
