"""What the last pipeline stage makes of the two models' hidden states: the losses of continual pre-training."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.wrapper import LastStage
from megatron_mixcpt.losses.divergence import Direction
from megatron_mixcpt.losses.fused_linear import FusedMixCPTLoss, fused_linear_mixcpt_loss
from megatron_mixcpt.losses.lssd import vocab_parallel_mixcpt_loss


class MixCPTTargets(NamedTuple):
    """What the tokens of a microbatch are to become, [b, s] each."""

    labels: Tensor
    """int64, the next tokens."""
    loss_mask: Tensor
    """float32, the weight of each token in the sum."""
    distill_mask: Tensor | None
    """bool, which tokens are distilled; None: none is."""
    measures_teacher: bool = False
    """Whether the teacher's own next-token loss is wanted as well; for evaluations, without gradients."""


@dataclass(frozen=True)
class MixCPTHead:
    """Both models' hidden states to the per-token losses (Mix-CPT Eq. 1, 6 and 7) and their masked sum.

    Args:
        alpha: weight of next-token prediction (Eq. 7).
        swap: whether the teacher's top-1 and ground-truth logits are exchanged (Eq. 4).
        vocab_size: number of true vocabulary columns; what tensor parallelism pads beyond gets no probability.
        tp_group: the ranks that hold the vocabulary.
        divergence: between student and teacher, reverse (Eq. 6) or forward.
        temperature: of both models' distributions in the divergence.
        teacher_entropy: also measure the entropy of the teacher's distribution.
        chunk_tokens: tokens whose logits are held at a time; 0: all of the microbatch's.
        sequence_parallel: whether hidden states are this rank's part of the sequence.
        gradient_accumulation_fusion: whether the engine's layers add weight gradients to ``main_grad`` themselves.
    """

    alpha: float
    swap: bool
    vocab_size: int
    tp_group: ProcessGroup
    divergence: Direction = "reverse"
    temperature: float = 1.0
    teacher_entropy: bool = False
    chunk_tokens: int = 0
    sequence_parallel: bool = False
    gradient_accumulation_fusion: bool = False

    def __call__(self, student: LastStage, teacher: LastStage | None, targets: MixCPTTargets) -> FusedMixCPTLoss:
        """The summed loss, which alone has a gradient, and the losses of each token [s, b]."""
        labels, loss_mask, distill_mask = (None if part is None else part.transpose(0, 1) for part in targets[:3])
        labels = labels.contiguous()
        compute = self._loss_in_chunks if self.chunk_tokens else self._loss_of_all_logits
        losses = compute(student, teacher, labels, loss_mask, distill_mask)
        if targets.measures_teacher and teacher is not None:
            losses = losses._replace(teacher_ntp=compute(teacher, None, labels, loss_mask, None).ntp)
        return losses

    def _loss_of_all_logits(
        self,
        student: LastStage,
        teacher: LastStage | None,
        labels: Tensor,
        loss_mask: Tensor,
        distill_mask: Tensor | None,
    ) -> FusedMixCPTLoss:
        with torch.no_grad():
            teacher_logits = None if teacher is None else teacher.logits()
        losses = vocab_parallel_mixcpt_loss(
            student.logits(),
            teacher_logits,
            labels,
            inplace=True,  # nobody reads the logits again: their memory takes the gradient
            distill_mask=distill_mask,
            **self._options(),
        )
        return FusedMixCPTLoss((losses.loss * loss_mask).sum(), losses.loss.detach(), *losses[1:])

    def _loss_in_chunks(
        self,
        student: LastStage,
        teacher: LastStage | None,
        labels: Tensor,
        loss_mask: Tensor,
        distill_mask: Tensor | None,
    ) -> FusedMixCPTLoss:
        """In place of the engine's output layer, whose collectives and weight gradient the fused loss takes over."""
        return fused_linear_mixcpt_loss(
            student.hidden_states,
            student.weight,
            None if teacher is None else teacher.hidden_states,
            None if teacher is None else teacher.weight,
            labels,
            loss_mask=loss_mask,
            distill_mask=distill_mask,
            sequence_parallel=self.sequence_parallel,
            gradient_accumulation_fusion=self.gradient_accumulation_fusion,
            chunk_tokens=self.chunk_tokens,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        """What both ways of computing the loss take."""
        return {
            "alpha": self.alpha,
            "swap": self.swap,
            "vocab_size": self.vocab_size,
            "tp_group": self.tp_group,
            "divergence": self.divergence,
            "temperature": self.temperature,
            "teacher_entropy": self.teacher_entropy,
        }
