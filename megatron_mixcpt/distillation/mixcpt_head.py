"""What the last pipeline stage makes of the two models' hidden states: the losses of continual pre-training."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.wrapper import LastStage
from megatron_mixcpt.losses.fused_linear import Projection, SummedMixCPTLoss, fused_linear_mixcpt_loss
from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScalings
from megatron_mixcpt.losses.lssd import mixcpt_loss
from megatron_mixcpt.objective import Objective


class MixCPTTargets(NamedTuple):
    """What the tokens of a microbatch are to become, [b, s] each."""

    labels: Tensor
    """int64, the next tokens."""
    loss_mask: Tensor
    """float32, the weight of each token in the sum."""
    distill_mask: Tensor | None
    """bool, which tokens are distilled; None: none is."""
    measures_teacher: bool = False
    """Whether the teacher's next-token loss is wanted as well; for evaluations, without gradients."""


@dataclass(frozen=True)
class MixCPTHead:
    """Both models' hidden states to the per-token losses (Mix-CPT Eq. 1, 6 and 7) and their masked sum.

    Args:
        objective: the options of the loss.
        vocab_size: number of true vocabulary columns; what tensor parallelism pads beyond gets no probability.
        tp_group: the ranks that hold the vocabulary.
        chunk_tokens: tokens whose logits are held at a time; 0: all of the microbatch's.
        sequence_parallel: whether hidden states are this rank's part of the sequence.
        gradient_accumulation_fusion: whether the engine's layers add weight gradients to ``main_grad`` themselves.
    """

    objective: Objective
    vocab_size: int
    tp_group: ProcessGroup
    chunk_tokens: int = 0
    sequence_parallel: bool = False
    gradient_accumulation_fusion: bool = False

    def __call__(self, student: LastStage, teacher: LastStage | None, targets: MixCPTTargets) -> SummedMixCPTLoss:
        """The summed loss, which alone has a gradient, and the losses of each token [s, b]."""
        of_tokens = targets._replace(
            labels=targets.labels.transpose(0, 1).contiguous(),
            loss_mask=targets.loss_mask.transpose(0, 1),
            distill_mask=None if targets.distill_mask is None else targets.distill_mask.transpose(0, 1),
        )
        compute = self._loss_in_chunks if self.chunk_tokens else self._loss_of_all_logits
        losses = compute(student, teacher, of_tokens)
        if targets.measures_teacher and teacher is not None:
            of_teacher = compute(teacher, None, of_tokens._replace(distill_mask=None))
            losses = losses._replace(teacher_ntp=of_teacher.tokens.ntp)
        return losses

    def _loss_of_all_logits(
        self, student: LastStage, teacher: LastStage | None, targets: MixCPTTargets
    ) -> SummedMixCPTLoss:
        """From [s, b] targets and all logits of the microbatch."""
        with torch.no_grad():
            of_teacher = None if teacher is None else teacher.products()
        losses = mixcpt_loss(
            student.products(),
            of_teacher,
            targets.labels,
            self.objective,
            tp_group=self.tp_group,
            vocab_size=self.vocab_size,
            distill_mask=targets.distill_mask,
            inplace=True,  # nobody reads them again: their memory takes the gradient
            scalings=LogitScalings(student.scaling, UNSCALED if teacher is None else teacher.scaling),
        )
        loss_sum = (losses.loss * targets.loss_mask).sum()
        return SummedMixCPTLoss(loss_sum, losses._replace(loss=losses.loss.detach()))

    def _loss_in_chunks(
        self, student: LastStage, teacher: LastStage | None, targets: MixCPTTargets
    ) -> SummedMixCPTLoss:
        """In place of the engine's output layer, whose collectives and weight gradient the fused loss takes over."""
        return fused_linear_mixcpt_loss(
            _projection(student),
            None if teacher is None else _projection(teacher),
            targets.labels,
            self.objective,
            tp_group=self.tp_group,
            vocab_size=self.vocab_size,
            loss_mask=targets.loss_mask,
            distill_mask=targets.distill_mask,
            sequence_parallel=self.sequence_parallel,
            gradient_accumulation_fusion=self.gradient_accumulation_fusion,
            chunk_tokens=self.chunk_tokens,
        )


def _projection(model: LastStage) -> Projection:
    return Projection(model.hidden_states, model.weight(), model.scaling)
