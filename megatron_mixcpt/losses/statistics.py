"""The loss's one collective: what each rank's columns say of a token becomes what the whole vocabulary says of it.

A rank sends nine numbers of four bytes per token, one more at a temperature other than 1, and one more for the
teacher's entropy.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.divergence import Sums, TokenStatistics, mean_difference, merge
from megatron_mixcpt.losses.vocab_parallel import LOWEST, VocabShard, gather, logits_at
from megatron_mixcpt.objective import Divergence


def token_statistics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    shard: VocabShard,
    tp_group: dist.ProcessGroup | None,
    divergence: Divergence,
) -> TokenStatistics:
    """The statistics of the whole vocabulary, from this rank's logits ``[tokens, columns]`` and one all-gather."""
    local, top_index = _of_this_rank(student, teacher, shard, divergence)
    names = [name for name, numbers in local._asdict().items() if numbers is not None]
    sent = [getattr(local, name) for name in names]
    # The vocabulary index of the rank's largest teacher logit, the lowest of equal ones, and the student's logit there;
    # the label's logits are 0 on ranks that do not hold it.
    sent += [top_index, logits_at(student, shard, top_index)]
    sent += [logits_at(student, shard, labels), logits_at(teacher, shard, labels)]
    *sums, top_index, student_top, student_label, teacher_label = gather(sent, tp_group)
    ranks = Sums(**{**dict.fromkeys(Sums._fields), **dict(zip(names, sums, strict=True))})
    # Of equal maxima argmax takes the first, the rank with the lowest columns.
    owner = ranks.teacher_max.argmax(0, keepdim=True)
    return _of_all_ranks(
        merge(ranks, divergence),
        divergence,
        top_index=top_index.gather(0, owner).squeeze(0),
        student_top=student_top.gather(0, owner).squeeze(0),
        student_label=student_label.sum(0),
        teacher_label=teacher_label.sum(0),
    )


def _of_this_rank(student: Tensor, teacher: Tensor, shard: VocabShard, divergence: Divergence) -> tuple[Sums, Tensor]:
    """The sums over this rank's columns, and the vocabulary index of the teacher's largest logit among them, int32."""
    if shard.num_columns:
        sums, top = kernels.divergence_statistics(student, teacher, shard.num_columns, divergence)
        return sums, (top + shard.first).int()
    zero = student.new_zeros(len(student), dtype=torch.float32)
    lowest = torch.full_like(zero, LOWEST)
    nothing = Sums(
        student_max=lowest,
        student_sum=zero,
        teacher_max=lowest,
        teacher_sum=zero,
        cross_sum=zero,
        ntp_sum=None if divergence.temperature == 1 else zero,
        teacher_cross=zero if divergence.teacher_entropy else None,
    )
    return nothing, zero.int()


def _of_all_ranks(
    sums: Sums,
    divergence: Divergence,
    *,
    top_index: Tensor,
    student_top: Tensor,
    student_label: Tensor,
    teacher_label: Tensor,
) -> TokenStatistics:
    """The statistics from the sums of the whole vocabulary and the single logits, as they are."""
    entropy = torch.zeros_like(sums.teacher_sum)
    if sums.teacher_cross is not None:
        entropy = sums.teacher_sum.log() - sums.teacher_cross / sums.teacher_sum
    return TokenStatistics(
        student_max=sums.student_max,
        student_log_sum=sums.student_sum.log(),
        student_label=student_label - sums.student_max,
        student_top=student_top - sums.student_max,
        teacher_max=sums.teacher_max,
        teacher_log_sum=sums.teacher_sum.log(),
        teacher_label=teacher_label - sums.teacher_max,
        mean_difference=mean_difference(sums, divergence),
        ntp_log_sum=(sums.student_sum if sums.ntp_sum is None else sums.ntp_sum).log(),
        top_index=top_index,
        teacher_entropy=entropy,
    )
