"""The Mix-CPT loss straight from hidden states and output weights, holding the logits of a few tokens at a time.

Tokens are taken in chunks: both models' logits of a chunk, its losses, its logits' gradient in their place, and from
that the gradient of its hidden states and its part of the output weight's. So the gradient is ready when forward ends,
and backward only scales it: no matrix product is done twice. This needs to know in forward how the tokens' losses are
added up; hence ``loss_mask`` goes in and the sum comes out. What is held instead of all logits, whatever the number of
tokens: one chunk of each model's logits, and a float32 gradient of the output weight from forward to backward.
"""

from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScaling, LogitScalings
from megatron_mixcpt.losses.lssd import MixCPTLoss, mixcpt_loss
from megatron_mixcpt.objective import Objective

# Tokens whose logits are held at a time.
CHUNK_TOKENS = 512


class Projection(NamedTuple):
    """A model's logits before they are computed: ``scaling(hidden_states @ weight.T)``."""

    hidden_states: Tensor
    """The last ones ``[s, b, h]``; with ``sequence_parallel`` this rank's ``[s/tp, b, h]``."""
    weight: Tensor
    """The output weight ``[v/tp, h]``, of the same dtype."""
    scaling: LogitScaling = UNSCALED


class SummedMixCPTLoss(NamedTuple):
    """What training needs of a microbatch's tokens."""

    loss_sum: Tensor
    """Sum of loss_mask * loss, a float32 scalar, the only one with a gradient."""
    tokens: MixCPTLoss
    """Of each token, detached."""
    teacher_ntp: Tensor | None = None
    """The teacher's next-token loss of each token, where it was measured as well."""


class _Setting(NamedTuple):
    """What the chunks have in common: options of the loss, and of the gradients' way back."""

    objective: Objective
    tp_group: dist.ProcessGroup | None
    vocab_size: int | None
    sequence_parallel: bool
    accumulate: bool
    chunk_tokens: int
    scalings: LogitScalings


def fused_linear_mixcpt_loss(
    student: Projection,
    teacher: Projection | None,
    labels: Tensor,
    objective: Objective,
    *,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int | None = None,
    loss_mask: Tensor | None = None,
    distill_mask: Tensor | None = None,
    sequence_parallel: bool = False,
    gradient_accumulation_fusion: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
) -> SummedMixCPTLoss:
    """Sum over tokens of loss_mask * (alpha * NTP + (1 - alpha) * LSSD), logits being those of ``Projection``.

    Differentiable in the student's hidden states and weight, once; nothing is spent on a weight that needs no gradient.
    Forward: one all-gather of 36 bytes per token and rank in all, one per chunk, and with ``sequence_parallel`` one of
    each model's hidden states. Backward: one all-reduce of the hidden states' gradient, with ``sequence_parallel`` a
    reduce-scatter. Under ``torch.no_grad`` no
    gradient is computed.

    Args:
        student: what is trained.
        teacher: of any hidden size; None: NTP alone.
        labels: int64 ``[s, b]``.
        objective: as in ``lssd.mixcpt_loss``, and so ``tp_group``, ``vocab_size`` and ``distill_mask``.
        loss_mask: weight of each token in the sum, ``[s, b]``; None: 1.
        sequence_parallel: whether hidden states are this rank's part of the sequence.
        gradient_accumulation_fusion: add the weight's gradient to ``weight.main_grad``, if it has one, as the engine's
            layers do (``megatron/core/tensor_parallel/layers.py``), and leave ``weight.grad`` to the engine's hooks.
        chunk_tokens: tokens whose logits are held at a time.

    Raises:
        ValueError: as ``lssd.mixcpt_loss``.
    """
    setting = _Setting(
        objective,
        tp_group,
        vocab_size,
        sequence_parallel,
        gradient_accumulation_fusion,
        chunk_tokens,
        LogitScalings(student.scaling, UNSCALED if teacher is None else teacher.scaling),
    )
    mask = torch.ones_like(labels, dtype=torch.float32) if loss_mask is None else loss_mask.float()
    if distill_mask is not None:
        distill_mask = distill_mask.expand(labels.shape).reshape(-1)
    frozen = None if teacher is None else Projection(teacher.hidden_states.detach(), teacher.weight.detach())
    tokens = _Tokens(labels.reshape(-1), mask.reshape(-1), distill_mask)
    needs_gradient = torch.is_grad_enabled() and (student.hidden_states.requires_grad or student.weight.requires_grad)
    loss_sum, *results = _FusedLinear.apply(
        student.hidden_states, student.weight, frozen, tokens, setting, needs_gradient
    )
    return SummedMixCPTLoss(loss_sum, MixCPTLoss(*(result.view(labels.shape) for result in results)))


class _Tokens(NamedTuple):
    """``[tokens]``: labels, weights in the sum, and which are distilled."""

    labels: Tensor
    mask: Tensor
    distill_mask: Tensor | None

    def rows(self, rows: slice) -> "_Tokens":
        """Those of a chunk."""
        return _Tokens(*(None if part is None else part[rows] for part in self))


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        teacher: Projection | None,
        tokens: _Tokens,
        setting: _Setting,
        needs_gradient: bool,
    ) -> tuple[Tensor, ...]:
        student = Projection(_whole_sequence(hidden_states, setting), weight)
        if teacher is not None:
            teacher = Projection(_whole_sequence(teacher.hidden_states, setting), teacher.weight)
        hidden = student.hidden_states
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        grad_weight = None
        buffer, teacher_buffer = _logits_buffer(student, setting), _logits_buffer(teacher, setting)
        results = []
        for start in range(0, len(hidden), setting.chunk_tokens):
            rows = slice(start, start + setting.chunk_tokens)
            logits = _chunk_logits(student, rows, buffer)
            teacher_logits = _chunk_logits(teacher, rows, teacher_buffer)
            result, grad_logits = _chunk_loss(logits, teacher_logits, tokens.rows(rows), setting, needs_gradient)
            results.append(result)
            if grad_hidden is not None and grad_logits is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
                if weight.requires_grad:
                    grad_weight = _accumulated(grad_weight, grad_logits.t(), hidden[rows])
        whole = MixCPTLoss(*(torch.cat(parts) for parts in zip(*results, strict=True)))
        ctx.gradients, ctx.weight, ctx.setting = (grad_hidden, grad_weight), weight, setting
        ctx.shape = hidden_states.shape
        ctx.mark_non_differentiable(*whole)
        ctx.set_materialize_grads(False)
        return (whole.loss * tokens.mask).sum(), *whole

    @staticmethod
    def backward(ctx, grad_sum: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_sum is None:
            return (None,) * 6
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        grad_hidden = _own_sequence(grad_hidden.mul_(grad_sum), ctx.setting).view(ctx.shape)
        if grad_weight is None:  # frozen
            return grad_hidden, None, None, None, None, None
        grad_weight.mul_(grad_sum)
        if ctx.setting.accumulate and hasattr(ctx.weight, "main_grad"):
            return grad_hidden, _add_to_main_grad(ctx.weight, grad_weight), None, None, None, None
        return grad_hidden, grad_weight.to(ctx.weight.dtype), None, None, None, None


def _logits_buffer(model: Projection | None, setting: _Setting) -> Tensor | None:
    """Memory for a chunk of a model's logits."""
    if model is None:
        return None
    return model.weight.new_empty((min(setting.chunk_tokens, len(model.hidden_states)), len(model.weight)))


def _chunk_logits(model: Projection | None, rows: slice, buffer: Tensor | None) -> Tensor | None:
    """The logits of the tokens ``rows``, in the buffer."""
    if model is None or buffer is None:
        return None
    hidden = model.hidden_states[rows]
    return torch.mm(hidden, model.weight.t(), out=buffer[: len(hidden)])


def _chunk_loss(
    logits: Tensor, teacher_logits: Tensor | None, tokens: _Tokens, setting: _Setting, needs_gradient: bool
) -> tuple[MixCPTLoss, Tensor | None]:
    """Losses of these tokens, and the gradient of their masked sum in the student's logits, in their place."""
    logits = logits.detach().requires_grad_(needs_gradient)
    with torch.set_grad_enabled(needs_gradient):
        result = mixcpt_loss(
            logits,
            teacher_logits,
            tokens.labels,
            setting.objective,
            tp_group=setting.tp_group,
            vocab_size=setting.vocab_size,
            distill_mask=tokens.distill_mask,
            inplace=True,
            scalings=setting.scalings,
        )
        gradient = torch.autograd.grad(result.loss, logits, tokens.mask)[0] if needs_gradient else None
    return MixCPTLoss(*(part.detach() for part in result)), gradient


def _accumulated(total: Tensor | None, grad_logits: Tensor, hidden: Tensor) -> Tensor:
    """``total + grad_logits @ hidden`` in ``total``: the output weight's gradient so far, float32; None: a new one."""
    if _multiplies_onto_float32(hidden.device.type, hidden.dtype):
        # No product of the weight's size beside the sum: the matrix product reads the sum and writes it.
        beta, total = (1, total) if total is not None else (0, _new_total(grad_logits, hidden))
        if hidden.dtype == torch.float32:
            return torch.addmm(total, grad_logits, hidden, beta=beta, out=total)
        return torch.addmm(total, grad_logits, hidden, out_dtype=torch.float32, beta=beta, out=total)
    part = grad_logits @ hidden
    if total is None:
        return part.float()
    # Compiled, because a float32 sum of a bfloat16 part makes a float32 copy of it first.
    compiled.run(_add, (total, part))
    return total


def _new_total(grad_logits: Tensor, hidden: Tensor) -> Tensor:
    return hidden.new_empty((grad_logits.size(0), hidden.size(1)), dtype=torch.float32)


@cache
def _multiplies_onto_float32(device_type: str, dtype: torch.dtype) -> bool:
    """Whether products of this dtype can be added to a float32 tensor: tried once, for torch does not tell."""
    one = torch.ones((8, 8), dtype=dtype, device=device_type)
    try:
        torch.addmm(one.float(), one, one, **({} if dtype == torch.float32 else {"out_dtype": torch.float32}))
    except (RuntimeError, TypeError):
        return False
    return True


def _add(total: Tensor, part: Tensor) -> None:
    total += part.float()


def _add_to_main_grad(weight: Tensor, grad_weight: Tensor) -> Tensor | None:
    """Add to ``weight.main_grad`` and return what the engine's hooks expect in place of a gradient."""
    weight.main_grad.add_(grad_weight)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    # The hooks read its presence; only where the engine says so is it added anywhere.
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)


def _whole_sequence(hidden_states: Tensor, setting: _Setting) -> Tensor:
    """All ranks' hidden states ``[s * b, h]``, gathered along the sequence if it is split."""
    whole = hidden_states.detach()
    if setting.sequence_parallel and setting.tp_group is not None and setting.tp_group.size() > 1:
        whole = whole.new_empty((setting.tp_group.size() * whole.size(0), *whole.shape[1:]))
        dist.all_gather_into_tensor(whole, hidden_states.detach().contiguous(), group=setting.tp_group)
    return whole.reshape(-1, whole.size(-1))


def _own_sequence(gradient: Tensor, setting: _Setting) -> Tensor:
    """The ranks' gradients ``[s * b, h]`` added up: all of it, or this rank's part of a split sequence."""
    group = setting.tp_group
    if group is None or group.size() == 1:
        return gradient
    if not setting.sequence_parallel:
        dist.all_reduce(gradient, group=group)
        return gradient
    own = gradient.new_empty((len(gradient) // group.size(), gradient.size(1)))
    dist.reduce_scatter_tensor(own, gradient, group=group)
    return own
