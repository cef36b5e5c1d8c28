"""What the last pipeline stage makes of the two models' hidden states: the losses of continual pre-training."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.wrapper import LastStage
from megatron_mixcpt.losses.divergence import Direction
from megatron_mixcpt.losses.fused_linear import FusedMixCPTLoss
from megatron_mixcpt.losses.lssd import vocab_parallel_mixcpt_loss


class MixCPTTargets(NamedTuple):
    """What the tokens of a microbatch are to become, [b, s] each."""

    labels: Tensor
    """int64, the next tokens."""
    loss_mask: Tensor
    """float32, the weight of each token in the sum."""
    distill_mask: Tensor | None
    """bool, which tokens are distilled; None: none is."""


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
    """

    alpha: float
    swap: bool
    vocab_size: int
    tp_group: ProcessGroup
    divergence: Direction = "reverse"
    temperature: float = 1.0

    def __call__(self, student: LastStage, teacher: LastStage | None, targets: MixCPTTargets) -> FusedMixCPTLoss:
        """The summed loss, which alone has a gradient, and the losses of each token [s, b]."""
        labels, loss_mask, distill_mask = (None if part is None else part.transpose(0, 1) for part in targets)
        with torch.no_grad():
            teacher_logits = None if teacher is None else teacher.logits()
        losses = vocab_parallel_mixcpt_loss(
            student.logits(),
            teacher_logits,
            labels.contiguous(),
            alpha=self.alpha,
            tp_group=self.tp_group,
            swap=self.swap,
            inplace=True,  # nobody reads the logits again: their memory takes the gradient
            vocab_size=self.vocab_size,
            distill_mask=distill_mask,
            divergence=self.divergence,
            temperature=self.temperature,
        )
        return FusedMixCPTLoss((losses.loss * loss_mask).sum(), losses.loss.detach(), *losses[1:])
