"""Next-token prediction over a sharded vocabulary: the loss of tokens that are not distilled, and log-probabilities.

Unlike the engine's cross-entropy (``megatron/core/tensor_parallel/cross_entropy.py``, three collectives, float32 logits
overwritten) it needs one collective and leaves the logits alone, unless told to put their gradient in their place.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.losses import compiled, kernels
from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScaling
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
    scaling: LogitScaling = UNSCALED,
) -> Tensor:
    """-log softmax(logits)[label] of every token in nats, float32, the labels' shape; differentiable in ``logits``.

    One all-gather of 12 bytes per token and rank forward, none backward. Saved for backward: the logits and three
    numbers per token. Arguments and errors as those of ``lssd.mixcpt_loss``, ``scaling`` being the student's; a label
    outside ``[0, vocab_size)`` gives loss and gradient 0.
    """
    check_shapes(logits, labels)
    shard = vocab_shard(logits.size(-1), vocab_size, tp_group)
    flat = logits.reshape(-1, logits.size(-1))
    setting = _Setting(shard, tp_group, inplace, scaling)
    return _CrossEntropy.apply(flat, labels.reshape(-1), setting).view(labels.shape)


class _Setting(NamedTuple):
    """What a call's tokens have in common."""

    shard: VocabShard
    tp_group: dist.ProcessGroup | None
    inplace: bool
    scaling: LogitScaling


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, products: Tensor, labels: Tensor, setting: _Setting) -> Tensor:
        products = products.detach()
        gathered = gather(_local_statistics(products, labels, setting), setting.tp_group)
        loss, *statistics = compiled.run_on_tokens(_losses(setting.shard.vocab_size), (gathered, labels))
        ctx.save_for_backward(products, labels, *statistics)
        ctx.setting = setting
        return loss

    @staticmethod
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        products, labels, *statistics = ctx.saved_tensors
        shard, scaling = ctx.setting.shard, ctx.setting.scaling
        gradient = gradient_buffer(products, shard, ctx.setting.inplace)
        if shard.num_columns:
            prepare = _gradient_rows(shard.vocab_size, scaling)
            weight, at_label, live = compiled.run_on_tokens(prepare, (grad_loss, labels, *statistics))
            maximum, log_sum, _ = statistics
            kernels.write_cross_entropy_gradient(gradient, products, maximum, log_sum, weight, shard, scaling)
            kernels.overwrite_columns(gradient, shard, (labels, at_label, live))
        return gradient, None, None


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
def _gradient_rows(vocab_size: int, scaling: LogitScaling) -> Callable[..., tuple[Tensor, ...]]:
    """From the incoming gradient to each row's weight, and what is written at the label and where."""

    def compute(
        grad_loss: Tensor, labels: Tensor, maximum: Tensor, log_sum: Tensor, label_logit: Tensor
    ) -> tuple[Tensor, ...]:
        has_label = is_true(labels, vocab_size)
        weight = torch.where(has_label, grad_loss, 0.0)
        of_logit = weight * ((label_logit - log_sum).exp() - 1)
        at_label = scaling.gradient_of_products(of_logit, label_logit + maximum)
        return weight, at_label, has_label & (weight != 0)

    return compute


def _local_statistics(products: Tensor, labels: Tensor, setting: _Setting) -> list[Tensor]:
    """What this rank sends, float32 ``[tokens]``: the fields of ``ExponentialStatistics``."""
    if setting.shard.num_columns:
        return list(kernels.exponential_statistics(products, labels, setting.shard, setting.scaling))
    zero = products.new_zeros(len(labels), dtype=torch.float32)
    return [torch.full_like(zero, LOWEST), zero, zero]
