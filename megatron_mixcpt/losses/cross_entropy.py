"""Next-token prediction over a sharded vocabulary: the loss of tokens that are not distilled, and log-probabilities.

Unlike the engine's cross-entropy (``megatron/core/tensor_parallel/cross_entropy.py``, three collectives, float32 logits
overwritten) it needs one collective and leaves the logits alone, unless told to put their gradient in their place.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import compiled, kernels
from megatron_mixcpt.losses.vocab_parallel import (
    LOWEST,
    VocabShard,
    by_number,
    check_shapes,
    gather,
    gradient_buffer,
    is_true,
    merge_exponentials,
    vocab_shard,
)


def vocab_parallel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    tp_group: dist.ProcessGroup | None,
    inplace: bool = False,
    vocab_size: int | None = None,
) -> Tensor:
    """-log softmax(logits)[label] of every token in nats, float32, the labels' shape; differentiable in ``logits``.

    One all-gather of 12 bytes per token and rank forward, none backward. Saved for backward: the logits and three
    numbers per token. Arguments and errors as those of ``lssd.vocab_parallel_mixcpt_loss``; a label outside
    ``[0, vocab_size)`` gives loss and gradient 0.
    """
    check_shapes(logits, labels)
    shard = vocab_shard(logits.size(-1), vocab_size, tp_group)
    flat = logits.reshape(-1, logits.size(-1))
    return _CrossEntropy.apply(flat, labels.reshape(-1), shard, tp_group, inplace).view(labels.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, shard: VocabShard, tp_group: dist.ProcessGroup | None, inplace: bool
    ) -> Tensor:
        logits = logits.detach()
        gathered = gather(_local_statistics(logits, labels, shard), tp_group)
        loss, *statistics = compiled.run_on_tokens(_losses(shard.vocab_size), (gathered, labels))
        ctx.save_for_backward(logits, labels, *statistics)
        ctx.shard, ctx.inplace = shard, inplace
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, maximum, log_sum, label_logit = ctx.saved_tensors
        shard = ctx.shard
        gradient = gradient_buffer(logits, shard, ctx.inplace)
        if shard.num_columns:
            weight, at_label, live = compiled.run_on_tokens(
                _gradient_rows(shard.vocab_size), (grad_loss, labels, log_sum, label_logit)
            )
            kernels.write_cross_entropy_gradient(gradient, logits, maximum, log_sum, weight, shard)
            kernels.overwrite_columns(gradient, shard, (labels, at_label, live))
        return gradient, None, None, None, None


@cache
def _losses(vocab_size: int) -> Callable[..., tuple[Tensor, ...]]:
    """From what the ranks gathered to the loss, and maximum, log-sum and label's logit less the maximum."""

    def compute(gathered: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        maxima, sums, label_logits = by_number(gathered)
        maximum, total, _ = merge_exponentials(maxima, sums)
        log_sum, label_logit = total.log(), label_logits.sum(0) - maximum
        return torch.where(is_true(labels, vocab_size), log_sum - label_logit, 0.0), maximum, log_sum, label_logit

    return compute


@cache
def _gradient_rows(vocab_size: int) -> Callable[..., tuple[Tensor, ...]]:
    """From the incoming gradient to each row's weight, and what is written at the label and where."""

    def compute(grad_loss: Tensor, labels: Tensor, log_sum: Tensor, label_logit: Tensor) -> tuple[Tensor, ...]:
        has_label = is_true(labels, vocab_size)
        weight = torch.where(has_label, grad_loss, 0.0)
        return weight, weight * ((label_logit - log_sum).exp() - 1), has_label & (weight != 0)

    return compute


def _local_statistics(logits: Tensor, labels: Tensor, shard: VocabShard) -> list[Tensor]:
    """What this rank sends, float32 ``[tokens]``: the fields of ``ExponentialStatistics``."""
    if shard.num_columns:
        return list(kernels.exponential_statistics(logits, labels, shard))
    zero = logits.new_zeros(len(labels), dtype=torch.float32)
    return [torch.full_like(zero, LOWEST), zero, zero]
