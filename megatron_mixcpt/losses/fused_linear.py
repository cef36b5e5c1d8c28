"""The Mix-CPT loss straight from hidden states and output weights, holding the logits of a few tokens at a time.

Tokens are taken in chunks: both models' logits of a chunk, its losses, its logits' gradient in their place, and from
that the gradient of its hidden states and its part of the output weight's. So the gradient is ready when forward ends,
and backward only scales it: no matrix product is done twice. This needs to know in forward how the tokens' losses are
added up; hence `loss_mask` goes in and the sum comes out. What is held instead of all logits, whatever the number of
tokens: one chunk of each model's logits, and a float32 gradient of the output weight from forward to backward.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.divergence import Direction
from megatron_mixcpt.losses.lssd import MixCPTLoss, vocab_parallel_mixcpt_loss

# Tokens whose logits are held at a time.
CHUNK_TOKENS = 512


class FusedMixCPTLoss(NamedTuple):
    """`loss_sum`: sum of loss_mask * loss, float32 scalar, the only one with a gradient; the rest as `MixCPTLoss`.

    `teacher_ntp`, the teacher's own next-token loss, is for whoever computes that to add.
    """

    loss_sum: Tensor
    loss: Tensor
    ntp: Tensor
    lssd: Tensor
    swapped: Tensor
    agreed: Tensor
    teacher_top: Tensor
    student_top: Tensor
    teacher_entropy: Tensor
    teacher_ntp: Tensor | None = None


class _Settings(NamedTuple):
    """What the chunks have in common: options of the loss, and of the gradients' way back."""

    loss: dict
    tp_group: dist.ProcessGroup | None
    sequence_parallel: bool
    accumulate: bool
    chunk_tokens: int


def fused_linear_mixcpt_loss(
    hidden_states: Tensor,
    weight: Tensor,
    teacher_hidden_states: Tensor | None,
    teacher_weight: Tensor | None,
    labels: Tensor,
    *,
    alpha: float,
    tp_group: dist.ProcessGroup | None,
    loss_mask: Tensor | None = None,
    swap: bool = True,
    vocab_size: int | None = None,
    distill_mask: Tensor | None = None,
    sequence_parallel: bool = False,
    gradient_accumulation_fusion: bool = False,
    chunk_tokens: int = CHUNK_TOKENS,
    divergence: Direction = "reverse",
    temperature: float = 1.0,
    teacher_entropy: bool = False,
) -> FusedMixCPTLoss:
    """Sum over tokens of loss_mask * (alpha * NTP + (1 - alpha) * LSSD), logits being hidden states times weight.

    Differentiable in `hidden_states` and `weight`, once. Forward: one all-gather of 36 bytes per token and rank in all,
    one per chunk, and with `sequence_parallel` one of each model's hidden states. Backward: one all-reduce of the
    hidden states' gradient, with `sequence_parallel` a reduce-scatter. Under `torch.no_grad` no gradient is computed.

    Args:
        hidden_states: the student's last ones `[s, b, h]`; with `sequence_parallel` this rank's `[s/tp, b, h]`.
        weight: the student's output weight `[v/tp, h]`, of the same dtype.
        teacher_hidden_states, teacher_weight: the teacher's, of any hidden size; None, None: NTP alone.
        labels: int64 `[s, b]`.
        loss_mask: weight of each token in the sum, `[s, b]`; None: 1.
        gradient_accumulation_fusion: add the weight's gradient to `weight.main_grad`, if it has one, as the engine's
            layers do (`megatron/core/tensor_parallel/layers.py`), and leave `weight.grad` to the engine's hooks.
        chunk_tokens: tokens whose logits are held at a time.
        alpha, tp_group, swap, vocab_size, distill_mask, divergence, temperature, teacher_entropy: as in
            `vocab_parallel_mixcpt_loss`.

    Raises:
        ValueError: as `lssd.vocab_parallel_mixcpt_loss`.
    """
    options = {"alpha": alpha, "tp_group": tp_group, "swap": swap, "vocab_size": vocab_size}
    options |= {"divergence": divergence, "temperature": temperature, "teacher_entropy": teacher_entropy}
    settings = _Settings(options, tp_group, sequence_parallel, gradient_accumulation_fusion, chunk_tokens)
    mask = torch.ones_like(labels, dtype=torch.float32) if loss_mask is None else loss_mask.float()
    if distill_mask is not None:
        distill_mask = distill_mask.expand(labels.shape).reshape(-1)
    teacher = None if teacher_hidden_states is None else (teacher_hidden_states.detach(), teacher_weight.detach())
    tokens = labels.reshape(-1), mask.reshape(-1), distill_mask
    needs_gradient = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
    results = _FusedLinear.apply(hidden_states, weight, teacher, tokens, settings, needs_gradient)
    return FusedMixCPTLoss(results[0], *(result.view(labels.shape) for result in results[1:]))


class _FusedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden_states: Tensor,
        weight: Tensor,
        teacher: tuple[Tensor, Tensor] | None,
        tokens: tuple[Tensor, Tensor, Tensor | None],
        settings: _Settings,
        needs_gradient: bool,
    ) -> tuple[Tensor, ...]:
        hidden = _whole_sequence(hidden_states, settings)
        if teacher is not None:
            teacher = _whole_sequence(teacher[0], settings), teacher[1]
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        grad_weight = None
        buffers = _logits_buffers(len(hidden), weight, teacher, settings)
        results = []
        for start in range(0, len(hidden), settings.chunk_tokens):
            rows = slice(start, start + settings.chunk_tokens)
            logits = _chunk_logits(hidden, weight, rows, buffers[0])
            teacher_logits = _chunk_logits(*teacher, rows, buffers[1]) if teacher is not None else None
            result, grad_logits = _chunk_loss(logits, teacher_logits, tokens, rows, settings.loss, needs_gradient)
            results.append(result)
            if needs_gradient:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
                grad_weight = _accumulated(grad_weight, grad_logits.t() @ hidden[rows])
        tokens_loss, *rest = (torch.cat(parts) for parts in zip(*results, strict=True))
        ctx.gradients, ctx.weight, ctx.settings = (grad_hidden, grad_weight), weight, settings
        ctx.shape = hidden_states.shape
        ctx.mark_non_differentiable(tokens_loss, *rest)
        ctx.set_materialize_grads(False)
        return (tokens_loss * tokens[1]).sum(), tokens_loss, *rest

    @staticmethod
    def backward(ctx, grad_sum: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_sum is None:
            return (None,) * 6
        grad_hidden, grad_weight = ctx.gradients
        ctx.gradients = None
        grad_hidden = _own_sequence(grad_hidden.mul_(grad_sum), ctx.settings).view(ctx.shape)
        grad_weight.mul_(grad_sum)
        if ctx.settings.accumulate and hasattr(ctx.weight, "main_grad"):
            return grad_hidden, _add_to_main_grad(ctx.weight, grad_weight), None, None, None, None
        return grad_hidden, grad_weight.to(ctx.weight.dtype), None, None, None, None


def _logits_buffers(
    num_tokens: int, weight: Tensor, teacher: tuple[Tensor, Tensor] | None, settings: _Settings
) -> list[Tensor]:
    """Memory for a chunk of each model's logits."""
    weights = [weight] if teacher is None else [weight, teacher[1]]
    num_rows = min(settings.chunk_tokens, num_tokens)
    return [matrix.new_empty((num_rows, len(matrix))) for matrix in weights]


def _chunk_logits(hidden: Tensor, weight: Tensor, rows: slice, buffer: Tensor) -> Tensor:
    """The logits of the tokens `rows`, in the buffer."""
    hidden = hidden[rows]
    return torch.mm(hidden, weight.t(), out=buffer[: len(hidden)])


def _chunk_loss(
    logits: Tensor,
    teacher_logits: Tensor | None,
    tokens: tuple[Tensor, Tensor, Tensor | None],
    rows: slice,
    options: dict,
    needs_gradient: bool,
) -> tuple[MixCPTLoss, Tensor | None]:
    """Losses of the tokens `rows`, and the gradient of their masked sum in the student's logits, in their place."""
    labels, mask, distill_mask = (None if part is None else part[rows] for part in tokens)
    logits = logits.detach().requires_grad_(needs_gradient)
    with torch.set_grad_enabled(needs_gradient):
        result = vocab_parallel_mixcpt_loss(
            logits, teacher_logits, labels, inplace=True, distill_mask=distill_mask, **options
        )
        gradient = torch.autograd.grad(result.loss, logits, mask)[0] if needs_gradient else None
    return MixCPTLoss(*(part.detach() for part in result)), gradient


def _accumulated(grad_weight: Tensor | None, part: Tensor) -> Tensor:
    """The sum of the chunks' parts of the output weight's gradient so far, float32."""
    if grad_weight is None:
        return part.float()
    # Compiled, because a float32 sum of a bfloat16 part makes a float32 copy of it first.
    compiled.run(_add, (grad_weight, part), part.size(1))
    return grad_weight


def _add(total: Tensor, part: Tensor, num_columns: int) -> None:
    total[:, :num_columns] += part[:, :num_columns].float()


def _add_to_main_grad(weight: Tensor, grad_weight: Tensor) -> Tensor | None:
    """Add to `weight.main_grad` and return what the engine's hooks expect in place of a gradient."""
    weight.main_grad.add_(grad_weight)
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    # The hooks read its presence; only where the engine says so is it added anywhere.
    return torch.zeros_like(weight) if getattr(weight, "zero_out_wgrad", False) else torch.empty_like(weight)


def _whole_sequence(hidden_states: Tensor, settings: _Settings) -> Tensor:
    """All ranks' hidden states `[s * b, h]`, gathered along the sequence if it is split."""
    whole = hidden_states.detach()
    if settings.sequence_parallel and settings.tp_group is not None and settings.tp_group.size() > 1:
        whole = whole.new_empty((settings.tp_group.size() * whole.size(0), *whole.shape[1:]))
        dist.all_gather_into_tensor(whole, hidden_states.detach().contiguous(), group=settings.tp_group)
    return whole.reshape(-1, whole.size(-1))


def _own_sequence(gradient: Tensor, settings: _Settings) -> Tensor:
    """The ranks' gradients `[s * b, h]` added up: all of it, or this rank's part of a split sequence."""
    group = settings.tp_group
    if group is None or group.size() == 1:
        return gradient
    if not settings.sequence_parallel:
        dist.all_reduce(gradient, group=group)
        return gradient
    own = gradient.new_empty((len(gradient) // group.size(), gradient.size(1)))
    dist.reduce_scatter_tensor(own, gradient, group=group)
    return own
