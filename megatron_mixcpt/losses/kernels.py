"""The passes over the logits themselves: one that reads them forward, one that writes the gradient backward.

Everything that costs time or memory is here, on `[tokens, columns]` tensors of one rank; the rest of the losses works
on a few numbers per token. Rows are taken a few at a time, so that float32 temporaries stay in the processor's cache
and out of the memory budget whatever the number of tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Elements of the float32 temporaries at a time: 1 MiB each.
CHUNK_ELEMENTS = 2**18


def exponential_statistics(student: Tensor) -> tuple[Tensor, ...]:
    """Per row the maximum and the sum of exp(logit - maximum), float32 `[tokens]`, of logits `[tokens, columns]`."""
    return _in_row_chunks(_exponential_statistics, student)


def divergence_statistics(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Per row what the reverse KL needs of logits `[tokens, columns]`.

    Returns:
        student maximum, student sum, teacher maximum, teacher sum, cross sum (all float32 `[tokens]`, as defined by
        `vocab_parallel.ColumnStatistics`), and the column of the teacher's first largest logit, int64 `[tokens]`.
    """
    return _in_row_chunks(_divergence_statistics, student, teacher)


def write_gradient(gradient: Tensor, student: Tensor, teacher: Tensor | None, coefficients: tuple[Tensor, ...]) -> None:
    """Write p * (a + b * (log p~ - log q~)) into `gradient` `[tokens, columns]`, which may be `student` itself.

    p is the student's softmax; log p~ and log q~ are the two models' logits less their maxima. Without a teacher it is
    p * a. Rows whose coefficients are 0 get 0, even if their logits are not finite.

    Args:
        coefficients: float32 `[tokens]` each: student maximum, log of the student's sum, a; with a teacher also its
            maximum and b.
    """
    columns = [coefficient.unsqueeze(1) for coefficient in coefficients]
    logits = (student,) if teacher is None else (student, teacher)
    for rows in _row_chunks(student):
        body = _gradient if teacher is None else _distilled_gradient
        gradient[rows] = body(*(part[rows] for part in (*logits, *columns)))


def _exponential_statistics(student: Tensor) -> tuple[Tensor, Tensor]:
    student = student.float()
    maximum = student.amax(1)
    return maximum, (student - maximum[:, None]).exp().sum(1)


def _divergence_statistics(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    student, teacher = student.float(), teacher.float()
    student_max, teacher_max, top = student.amax(1), teacher.amax(1), teacher.argmax(1)
    student, teacher = student - student_max[:, None], teacher - teacher_max[:, None]
    exp_student = student.exp()
    cross_sum = (exp_student * (student - teacher)).sum(1)
    return student_max, exp_student.sum(1), teacher_max, teacher.exp().sum(1), cross_sum, top


def _gradient(student: Tensor, student_max: Tensor, log_sum: Tensor, a: Tensor) -> Tensor:
    gradient = (student.float() - student_max - log_sum).exp() * a
    return torch.where(a == 0, 0.0, gradient)


def _distilled_gradient(
    student: Tensor, teacher: Tensor, student_max: Tensor, log_sum: Tensor, a: Tensor, teacher_max: Tensor, b: Tensor
) -> Tensor:
    student, teacher = student.float() - student_max, teacher.float() - teacher_max
    gradient = (student - log_sum).exp() * (a + b * (student - teacher))
    return torch.where((a == 0) & (b == 0), 0.0, gradient)


def _in_row_chunks(body: Callable[..., tuple[Tensor, ...]], *logits: Tensor) -> tuple[Tensor, ...]:
    """`body` applied to a few rows at a time, its `[rows]` results joined."""
    chunks = [body(*(part[rows] for part in logits)) for rows in _row_chunks(logits[0])]
    return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))


def _row_chunks(logits: Tensor) -> list[slice]:
    num_rows, num_columns = logits.shape
    step = max(1, CHUNK_ELEMENTS // num_columns)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
