"""What each rank's columns and the whole vocabulary say of a token: all that the distillation losses are made of.

`ColumnStatistics` is what a rank sends, nine float32 numbers per token (one more at a temperature other than 1, and one
more for the teacher's entropy), and `divergence.TokenStatistics` what every rank makes of all of them.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.divergence import Divergence, TokenStatistics
from megatron_mixcpt.losses.vocab_parallel import (
    LOWEST,
    VocabShard,
    gather,
    logits_at,
    merge_cross_sums,
    merge_exponentials,
)


class ColumnStatistics(NamedTuple):
    """What a rank's columns say of each token: float32 `[tokens]`, `top_index` int32. No columns: `LOWEST` and 0.

    Maxima and single logits are the logits as they are; sums are of exp((logit - max) / temperature). `cross_sum` is
    that of exp(s') * (s' - t') with s' = (s - max s) / temperature and t' alike; for the forward divergence, of
    exp(t') * (t' - s'). `top_index` is the vocabulary index of the teacher's largest logit, the lowest index if several
    are equal, and `student_top` the student's logit there. `..._label` is the label's logit, 0 if it is not among these
    columns. `ntp_sum` is the student's sum at temperature 1, None where `student_sum` is that; `teacher_cross` is the
    sum of exp(t') * t', None where the teacher's entropy is not asked for.
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
    ntp_sum: Tensor | None = None
    teacher_cross: Tensor | None = None


def token_statistics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    shard: VocabShard,
    tp_group: dist.ProcessGroup | None,
    divergence: Divergence,
) -> TokenStatistics:
    """The statistics of the whole vocabulary, from this rank's logits `[tokens, columns]` and one all-gather."""
    local = _column_statistics(student, teacher, labels, shard, divergence)
    sent = {name: numbers for name, numbers in local._asdict().items() if numbers is not None}
    everyone = gather(list(sent.values()), tp_group)
    return _merge(ColumnStatistics(**dict(zip(sent, everyone, strict=True))), divergence)


def _column_statistics(
    student: Tensor, teacher: Tensor, labels: Tensor, shard: VocabShard, divergence: Divergence
) -> ColumnStatistics:
    if not shard.num_columns:
        lowest, zero = student.new_tensor([LOWEST, 0.0], dtype=torch.float32).unsqueeze(1).expand(2, len(labels))
        ntp_sum = None if divergence.temperature == 1 else zero
        teacher_cross = zero if divergence.teacher_entropy else None
        return ColumnStatistics(lowest, zero, zero, lowest, zero, zero, zero, zero, zero.int(), ntp_sum, teacher_cross)
    statistics = kernels.divergence_statistics(student, teacher, shard.num_columns, divergence)
    student_max, student_sum, teacher_max, teacher_sum, cross_sum, top, *more = statistics
    top_index = (top + shard.first).int()
    return ColumnStatistics(
        student_max=student_max,
        student_sum=student_sum,
        student_label=logits_at(student, shard, labels),
        teacher_max=teacher_max,
        teacher_sum=teacher_sum,
        teacher_label=logits_at(teacher, shard, labels),
        cross_sum=cross_sum,
        student_top=logits_at(student, shard, top_index),
        top_index=top_index,
        ntp_sum=more[0] if divergence.temperature != 1 else None,
        teacher_cross=more[-1] if divergence.teacher_entropy else None,
    )


def _merge(ranks: ColumnStatistics, divergence: Divergence) -> TokenStatistics:
    """The statistics of the whole vocabulary from those of each rank, stacked to `[ranks, tokens]`."""
    scale = 1 / divergence.temperature
    student_max, student_sum, student_weights = merge_exponentials(ranks.student_max, ranks.student_sum, scale)
    teacher_max, teacher_sum, teacher_weights = merge_exponentials(ranks.teacher_max, ranks.teacher_sum, scale)
    ntp_sum = student_sum
    if ranks.ntp_sum is not None:
        _, ntp_sum, _ = merge_exponentials(ranks.student_max, ranks.ntp_sum)
    # What moves a rank's differences, relative to its own maxima, to those of the whole vocabulary.
    shift = scale * ((ranks.student_max - student_max) - (ranks.teacher_max - teacher_max))
    if divergence.direction == "reverse":
        difference = merge_cross_sums(student_weights, ranks.cross_sum, ranks.student_sum, shift) / student_sum
    else:
        difference = merge_cross_sums(teacher_weights, ranks.cross_sum, ranks.teacher_sum, -shift) / teacher_sum
    entropy = torch.zeros_like(teacher_sum)
    if ranks.teacher_cross is not None:
        # A rank without columns, whose weight is 0, is as far away as float32 goes, or further.
        shift = torch.where(teacher_weights == 0, 0.0, scale * (ranks.teacher_max - teacher_max))
        mean = merge_cross_sums(teacher_weights, ranks.teacher_cross, ranks.teacher_sum, shift) / teacher_sum
        entropy = teacher_sum.log() - mean
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
        ntp_log_sum=ntp_sum.log(),
        top_index=ranks.top_index.gather(0, owner).squeeze(0),
        teacher_entropy=entropy,
    )
