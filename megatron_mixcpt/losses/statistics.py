"""The loss's one collective: what each rank's columns say of a token becomes what the whole vocabulary says of it.

A rank sends nine numbers of four bytes per token, one more at a temperature other than 1, and one more for the
teacher's entropy.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.divergence import Sums, TokenStatistics, mean_difference, merge
from megatron_mixcpt.losses.logit_scaling import LogitScalings
from megatron_mixcpt.losses.vocab_parallel import LOWEST, VocabShard, by_number, gather
from megatron_mixcpt.objective import Divergence


def gathered_statistics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    shard: VocabShard,
    tp_group: dist.ProcessGroup | None,
    divergence: Divergence,
    scalings: LogitScalings,
) -> Tensor:
    """All ranks' numbers of each token, float32 ``[tokens, ranks, numbers]``, for :func:`token_statistics`.

    From this rank's columns ``[tokens, columns]`` of both models, by one all-gather.
    """
    if not shard.num_columns:
        return gather(_of_no_columns(student, divergence), tp_group)
    local = kernels.divergence_statistics(student, teacher, labels, shard, divergence, scalings)
    sums = [numbers for numbers in local.sums if numbers is not None]
    logits = [local.student_top, local.student_label, local.teacher_label]
    return gather([*sums, local.top_column, *logits], tp_group)


def token_statistics(gathered: Tensor, divergence: Divergence, columns_per_rank: int) -> TokenStatistics:
    """The statistics of the whole vocabulary, of each token; plain arithmetic, so that it can be compiled."""
    *sums, top_column, student_top, student_label, teacher_label = by_number(gathered)
    ranks = _named(sums, divergence)
    # Of equal maxima argmax takes the first, the rank with the lowest columns.
    owner = ranks.teacher_max.argmax(0, keepdim=True)
    top_column, student_top = (part.gather(0, owner).squeeze(0) for part in (top_column, student_top))
    whole = merge(ranks, divergence)
    entropy = torch.zeros_like(whole.teacher_sum)
    if whole.teacher_cross is not None:
        entropy = whole.teacher_sum.log() - whole.teacher_cross / whole.teacher_sum
    return TokenStatistics(
        student_max=whole.student_max,
        student_log_sum=whole.student_sum.log(),
        # Ranks that do not hold the label send 0 for its logits.
        student_label=student_label.sum(0) - whole.student_max,
        student_top=student_top - whole.student_max,
        teacher_max=whole.teacher_max,
        teacher_log_sum=whole.teacher_sum.log(),
        teacher_label=teacher_label.sum(0) - whole.teacher_max,
        mean_difference=mean_difference(whole, divergence),
        ntp_log_sum=(whole.student_sum if whole.ntp_sum is None else whole.ntp_sum).log(),
        top_index=owner.squeeze(0).int() * columns_per_rank + top_column.view(torch.int32),
        teacher_entropy=entropy,
    )


def _absent(divergence: Divergence) -> set[str]:
    """The fields of ``Sums`` that are None with this divergence."""
    absent = {"ntp_sum"} if divergence.temperature == 1 else set()
    return absent if divergence.teacher_entropy else absent | {"teacher_cross"}


def _named(sums: list[Tensor], divergence: Divergence) -> Sums:
    """The numbers that were sent, under their names."""
    names = [name for name in Sums._fields if name not in _absent(divergence)]
    return Sums(**{**dict.fromkeys(Sums._fields), **dict(zip(names, sums, strict=True))})


def _of_no_columns(logits: Tensor, divergence: Divergence) -> list[Tensor]:
    """What a rank sends that holds nothing but padding: maxima of :data:`LOWEST`, and zeros."""
    zero = logits.new_zeros(len(logits), dtype=torch.float32)
    lowest = torch.full_like(zero, LOWEST)
    sums = [
        lowest if name in ("student_max", "teacher_max") else zero
        for name in Sums._fields
        if name not in _absent(divergence)
    ]
    return [*sums, zero.int(), zero, zero, zero]
