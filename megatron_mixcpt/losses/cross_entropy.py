"""Next-token prediction over a sharded vocabulary: the loss of tokens that are not distilled, and log-probabilities.

Unlike the engine's cross-entropy (``megatron/core/tensor_parallel/cross_entropy.py``, three collectives, float32 logits
overwritten) it needs one collective and leaves the logits alone, unless told to put their gradient in their place.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import kernels
from megatron_mixcpt.losses.vocab_parallel import (
    LOWEST,
    VocabShard,
    check_shapes,
    gather,
    gradient_buffer,
    logits_at,
    merge_exponentials,
    overwrite_at,
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
        local = _local_statistics(logits, labels, shard)
        maxima, sums, label_logits = gather(local, tp_group)
        maximum, total, _ = merge_exponentials(maxima, sums)
        log_sum = total.log()
        label_logit = label_logits.sum(0) - maximum
        ctx.save_for_backward(logits, labels, maximum, log_sum, label_logit)
        ctx.shard, ctx.inplace = shard, inplace
        return torch.where(shard.is_true(labels), log_sum - label_logit, 0.0)

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, maximum, log_sum, label_logit = ctx.saved_tensors
        shard, has_label = ctx.shard, ctx.shard.is_true(labels)
        weight = torch.where(has_label, grad_loss, 0.0)
        gradient = gradient_buffer(logits, shard, ctx.inplace)
        if shard.num_columns:
            kernels.write_cross_entropy_gradient(gradient, logits, maximum, log_sum, weight, shard.num_columns)
            at_label = weight * ((label_logit - log_sum).exp() - 1)
            overwrite_at(gradient, shard, labels, at_label, has_label & (weight != 0))
        return gradient, None, None, None, None


def _local_statistics(logits: Tensor, labels: Tensor, shard: VocabShard) -> list[Tensor]:
    """Maximum, sum of exp(logit - maximum) and the label's logit in this rank's true columns, float32 ``[tokens]``."""
    if shard.num_columns:
        maximum, total = kernels.exponential_statistics(logits, shard.num_columns)
    else:
        maximum, total = logits.new_full((2, len(labels)), LOWEST, dtype=torch.float32)
        total = torch.zeros_like(maximum)
    return [maximum, total, logits_at(logits, shard, labels)]
