"""The losses' cases that are compiled, interpreted and watched: each runs forward and backward on given tensors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_mixcpt.losses import cross_entropy, fused_linear, lssd
from megatron_mixcpt.objective import Divergence, Objective
from megatron_mixcpt.training.pretraining.loss import mixcpt_loss_func
from tests.gpu_static.autograd_by_hand import recorded

FUNCTIONS = (lssd._MixCPTLoss, cross_entropy._CrossEntropy, fused_linear._FusedLinear)

Empty = Callable[..., Tensor]
"""``empty(*size, dtype=...)``: a tensor on the device."""


def on_fake_device(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values, inside ``on_device``."""
    return torch.empty(size, device="cuda", dtype=dtype)


class Shape(NamedTuple):
    """Of a microbatch: tokens, columns of the logits, and how many of them are true."""

    tokens: int
    columns: int
    vocab_size: int
    dtype: torch.dtype = torch.bfloat16


def mixcpt(
    shape: Shape, objective: Objective | None = None, *, teacher: bool = True, mask: bool = True, inplace: bool = True
) -> None:
    """The loss from logits, of one sequence, and its gradient; without a teacher, cross-entropy."""
    logits = [on_fake_device(shape.tokens, 1, shape.columns, dtype=shape.dtype) for _ in range(1 + teacher)]
    labels = on_fake_device(shape.tokens, 1, dtype=torch.int64)
    with recorded(*FUNCTIONS) as calls:
        result = lssd.mixcpt_loss(
            logits[0],
            logits[1] if teacher else None,
            labels,
            objective or Objective(),
            tp_group=None,
            vocab_size=shape.vocab_size,
            distill_mask=on_fake_device(shape.tokens, 1, dtype=torch.bool) if mask else None,
            inplace=inplace,
        )
        assert {part.device.type for part in result} == {"cuda"}, result
        gradients = backward(calls, on_fake_device(shape.tokens))
    assert [gradient.dtype for gradient in gradients] == [shape.dtype]


def backward(calls: list, *gradients: Tensor) -> list[Tensor]:
    """Backward of the latest call; its gradients, all on the device."""
    function, context = calls[-1]
    with torch.no_grad():
        results = function.backward(context, *gradients)
    found = [part for part in results if isinstance(part, Tensor)]
    assert {part.device.type for part in found} == {"cuda"}, found
    return found


def loss_function(tokens: int = 2048, batch: int = 1, **options: Any) -> None:
    """What training makes of the losses of each token, with every figure it can report."""
    objective = Objective(divergence=Divergence(teacher_entropy=True))
    floats = [on_fake_device(tokens, batch) for _ in range(6)]
    flags = [on_fake_device(tokens, batch, dtype=torch.bool) for _ in range(2)]
    output = (on_fake_device(), (floats[0], floats[1], floats[2], *flags, *floats[3:6]), on_fake_device(tokens, batch))
    loss, num_tokens, report = mixcpt_loss_func(
        on_fake_device(batch, tokens),
        on_fake_device(batch, tokens, dtype=torch.bool),
        output,
        objective=objective,
        kinds=("cpt", "sft", "dpo"),
        kind=on_fake_device(batch, dtype=torch.int64),
        **options,
    )
    places = {part.device.type for part in (loss, num_tokens, *report.values())}
    assert places == {"cuda"} and len(report) == 12, report
