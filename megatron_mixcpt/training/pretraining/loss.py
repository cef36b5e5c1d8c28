"""From per-token losses to what the engine trains on and what it reports.

The last stage returns sums and counts; the engine adds them over microbatches and data parallel ranks and divides once,
so every figure is a mean over the tokens of the global batch (Eq. 7), whatever the layout.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from megatron_mixcpt.log_names import (
    AGREEMENT,
    DIVERGENCE,
    LOSS,
    STUDENT_LOSS,
    SWAPPED_FRACTION,
    TEACHER_LOSS,
    of_dataset,
)
from megatron_mixcpt.losses import compiled
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
        kinds: names of the datasets (kinds of data, or sources of one) whose divergences are reported one by one.
        kind: int64 [b], each sample's place in ``kinds``.
        penalty: returns what to add to the reported sum of the loss, a scalar; its gradient is accounted for elsewhere.

    Returns:
        The summed loss, the number of unmasked tokens (int32), and for each reported key its sum and count, float32
        [2]. What the teacher has a part in is a mean over the distilled tokens.
    """
    summed = SummedMixCPTLoss(*output)
    losses = MixCPTLoss(*summed.tokens)
    mask = loss_mask.transpose(0, 1).float()
    distilled = torch.zeros_like(mask) if distill_mask is None else distill_mask.transpose(0, 1)
    tokens = {"mask": mask, "distilled": distilled, **losses._asdict()}
    if summed.teacher_ntp is not None:
        tokens["teacher_ntp"] = summed.teacher_ntp
    if kind is not None:
        tokens["kind"] = kind.expand(mask.shape)
    keys = _reported(objective, tuple(kinds), summed.teacher_ntp is not None)
    num_tokens, *numbers = compiled.run_on_tokens(_summing(tuple(tokens), keys), tuple(tokens.values()))
    total = summed.loss_sum.detach() + (penalty() if penalty else 0.0)
    pairs = torch.stack([total.float(), num_tokens, *numbers]).view(-1, 2)
    report = dict(zip([LOSS, *(key for key, *_ in keys)], pairs, strict=True))
    return summed.loss_sum, num_tokens.to(torch.int32), report


_Reported = tuple[str, str, str, int | None]
"""What is reported: its key, the tokens' values, the mask of those that count, and the kind of data; None: all."""


@cache
def _reported(objective: Objective, kinds: tuple[str, ...], measures_teacher: bool) -> tuple[_Reported, ...]:
    """The means over tokens, in the order of the report."""
    reported: list[_Reported] = [
        (STUDENT_LOSS, "ntp", "mask", None),
        (DIVERGENCE, "lssd", "distilled", None),
        (SWAPPED_FRACTION, "swapped", "distilled", None),
    ]
    if objective.runs_teacher:
        reported += [
            (AGREEMENT, "agreed", "distilled", None),
            ("teacher top-1 probability", "teacher_top", "distilled", None),
            ("student top-1 probability", "student_top", "distilled", None),
        ]
        if objective.divergence.teacher_entropy:
            reported.append(("teacher entropy", "teacher_entropy", "distilled", None))
        if measures_teacher:
            reported.append((TEACHER_LOSS, "teacher_ntp", "mask", None))
        reported += [(of_dataset(DIVERGENCE, name), "lssd", "distilled", place) for place, name in enumerate(kinds)]
    return tuple(reported)


@cache
def _summing(names: tuple[str, ...], reported: tuple[_Reported, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """From the tensors ``[s, b]`` of these names: the number of tokens, then sum and count of each of ``reported``."""

    def compute(*tensors: Tensor) -> tuple[Tensor, ...]:
        tokens = dict(zip(names, tensors, strict=True))
        tokens["distilled"] = tokens["mask"] * tokens["distilled"]
        numbers = [tokens["mask"].sum()]
        for _, values, mask, place in reported:
            weights = tokens[mask] if place is None else tokens[mask] * (tokens["kind"] == place)
            numbers += [(tokens[values] * weights).sum(), weights.sum().clamp(min=_NONE)]
        return tuple(numbers)

    return compute


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
