"""From per-token losses to what the engine trains on and what it reports.

The last stage returns sums and counts; the engine adds them over microbatches and data parallel ranks and divides once,
so every figure is a mean over the tokens of the global batch (Eq. 7), whatever the layout.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_mixcpt.log_names import (
    AGREEMENT,
    DIVERGENCE,
    LOSS,
    STUDENT_LOSS,
    SWAPPED_FRACTION,
    TEACHER_LOSS,
    of_kind,
)
from megatron_mixcpt.losses.fused_linear import SummedMixCPTLoss
from megatron_mixcpt.losses.lssd import MixCPTLoss
from megatron_mixcpt.objective import Objective

# Stands for "no token", so that a mean over none is 0 and not nan; lost as soon as one token is added to it.
_NONE = 1e-20


def mixcpt_loss_func(
    loss_mask: Tensor,
    distill_mask: Tensor | None,
    output: tuple[Tensor, ...],
    *,
    objective: Objective,
    kinds: Sequence[str] = (),
    kind: Tensor | None = None,
    penalty: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The engine's ``loss_func`` of one microbatch.

    Args:
        loss_mask: float32 [b, s], 1 where the label counts.
        distill_mask: bool [b, s], or None where no token is distilled.
        output: the fields of :class:`SummedMixCPTLoss`, as the engine's wrappers leave them: plain tuples.
        objective: what is learned; where a teacher runs, its statistics are reported.
        kinds: names of the kinds of data whose divergences are reported one by one.
        kind: int64 [b], each sample's place in ``kinds``.
        penalty: returns what to add to the reported sum of the loss, a scalar; its gradient is accounted for elsewhere.

    Returns:
        The summed loss, the number of unmasked tokens (int32), and for each reported key its sum and count, float32
        [2]. What the teacher has a part in is a mean over the distilled tokens.
    """
    summed = SummedMixCPTLoss(*output)
    losses = MixCPTLoss(*summed.tokens)
    mask = loss_mask.transpose(0, 1).float()
    num_tokens = mask.sum()
    distilled = torch.zeros_like(mask) if distill_mask is None else mask * distill_mask.transpose(0, 1)
    report = {
        LOSS: torch.stack([summed.loss_sum.detach() + (penalty() if penalty else 0.0), num_tokens]),
        STUDENT_LOSS: _mean(losses.ntp, mask),
        DIVERGENCE: _mean(losses.lssd, distilled),
        SWAPPED_FRACTION: _mean(losses.swapped, distilled),
    }
    if objective.runs_teacher:
        report[AGREEMENT] = _mean(losses.agreed, distilled)
        report["teacher top-1 probability"] = _mean(losses.teacher_top, distilled)
        report["student top-1 probability"] = _mean(losses.student_top, distilled)
        if objective.divergence.teacher_entropy:
            report["teacher entropy"] = _mean(losses.teacher_entropy, distilled)
        if summed.teacher_ntp is not None:
            report[TEACHER_LOSS] = _mean(summed.teacher_ntp, mask)
        for place, name in enumerate(kinds):
            report[of_kind(DIVERGENCE, name)] = _mean(losses.lssd, distilled * (kind == place))
    return summed.loss_sum, num_tokens.to(torch.int32), report


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of ``values`` and sum of ``weights`` [s, b], float32 [2], for the engine to add up and divide."""
    return torch.stack([(values * weights).sum(), weights.sum().clamp(min=_NONE)])


class TokensPerSecond:
    """Adds ``tokens per second`` to the report: all ranks' tokens over the wall time since the microbatch before.

    Args:
        num_ranks: data and context parallel ranks, over which the engine adds up both numbers.
    """

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks = num_ranks
        self.restart()

    def restart(self) -> None:
        """Leave out the time until now, which was not spent on training."""
        self._last_s = time.monotonic()

    def __call__(self, loss_func: Callable[[Tensor], tuple], output: tuple[Tensor, ...]) -> tuple:
        """Run ``loss_func`` on ``output`` and add the key to its report."""
        loss, num_tokens, report = loss_func(output)
        now_s = time.monotonic()
        tokens = report[LOSS][1]
        seconds = torch.full_like(tokens, (now_s - self._last_s) / self.num_ranks)
        report["tokens per second"] = torch.stack([tokens, seconds])
        self._last_s = now_s
        return loss, num_tokens, report
