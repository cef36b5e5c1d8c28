"""What the last pipeline stage makes of hidden states in format alignment: the response tokens' log-probabilities.

The DPO policy is the student and its frozen reference the teacher of one ``StudentTeacherModel``.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.wrapper import LastStage
from megatron_mixcpt.losses.dpo import vocab_parallel_log_probs

NO_LABEL = -1


class AlignmentTargets(NamedTuple):
    """What the tokens of a microbatch are to become, [b, s] each."""

    labels: Tensor
    """int64, the next tokens."""
    loss_mask: Tensor
    """float32, 1 where the token belongs to a response."""


class LogProbs(NamedTuple):
    """log p of the response's tokens in nats, float32 [s, b], 0 elsewhere. Only ``policy`` has a gradient."""

    policy: Tensor
    reference: Tensor
    """0 where no reference ran."""


@dataclass(frozen=True)
class LogProbsHead:
    """The log-probability of each response token in the trained model and, where it runs, in the frozen one.

    Args:
        vocab_size: number of true vocabulary columns; what tensor parallelism pads beyond gets no probability.
        tp_group: the ranks that hold the vocabulary.
    """

    vocab_size: int
    tp_group: ProcessGroup

    def __call__(self, policy: LastStage, reference: LastStage | None, targets: AlignmentTargets) -> LogProbs:
        """See :class:`LogProbs`."""
        labels = targets.labels.masked_fill(targets.loss_mask == 0, NO_LABEL).transpose(0, 1).contiguous()
        with torch.no_grad():
            of_reference = None if reference is None else self._log_probs(reference, labels)
        of_policy = self._log_probs(policy, labels)
        return LogProbs(of_policy, torch.zeros_like(of_policy) if of_reference is None else of_reference)

    def _log_probs(self, model: LastStage, labels: Tensor) -> Tensor:
        # In place: nobody reads the products again, and their memory takes the gradient.
        options = {"tp_group": self.tp_group, "vocab_size": self.vocab_size, "inplace": True}
        return vocab_parallel_log_probs(model.products(), labels, scaling=model.scaling, **options)
