"""Attention whose scores go through a soft cap before the mask (Gemma 2), which no kernel of PyTorch computes.

    softmax(cap * tanh(scale * q k^T / cap) + mask) v

The softmax is written out, for one block of queries at a time, and not kept: only q, k, v are, and the backward pass
computes it again. So memory grows with ``ROWS`` times the number of keys, and not with the square of the sequence.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_mixcpt.models.query_blocks import MASKED_SCORE

ROWS = 512
"""Queries whose scores are in memory together: four float32 tensors [b, np, ROWS, keys] at the most."""


class _Setting(NamedTuple):
    scale: float
    softcap: float
    causal: bool


def softcap_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool, scale: float, softcap: float
) -> Tensor:
    """[b, np, sq, hn], [b, ng, sk, hn] twice -> [b, np, sq, hn], all of one dtype.

    As in transformers' eager attention, q k^T and the probabilities are rounded to that dtype; between them it is
    float32, or float64 for float64.

    Args:
        mask: [b or 1, 1, sq, sk], bool, True = may attend, or what is added to the scores.
        causal: without a mask: the last query sees all keys, each query before it one key less.
    """
    return _SoftcapAttention.apply(query, key, value, mask, _Setting(scale, softcap, causal))


class _SoftcapAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, setting: _Setting) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.setting = mask, setting
        _, probability = _probability(query, key, mask, setting)
        return _heads(_grouped(probability.to(value.dtype), value) @ value, query)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        bent, probability = _probability(query, key, ctx.mask, ctx.setting)
        rounded = _grouped(probability.to(value.dtype), value)
        gradient = _grouped(gradient, value)
        of_value = rounded.mT @ gradient
        of_score = (gradient @ value.mT).view_as(probability).to(probability.dtype)
        of_score = probability * (of_score - (of_score * probability).sum(-1, keepdim=True))
        of_score *= (1 - bent.square()).mul_(ctx.setting.scale)
        of_score = _grouped(of_score.to(query.dtype), key)
        return _heads(of_score @ key, query), of_score.mT @ _grouped(query, key), of_value, None, None


def _probability(query: Tensor, key: Tensor, mask: Tensor | None, setting: _Setting) -> tuple[Tensor, Tensor]:
    """tanh of the scores by the cap, and the softmax of the capped and masked scores; [b, np, sq, sk], float32."""
    scores = _grouped(query, key) @ key.mT
    scores = scores.view(*query.shape[:3], key.size(2)).to(torch.promote_types(query.dtype, torch.float32))
    bent = scores.mul_(setting.scale / setting.softcap).tanh_()
    capped = bent * setting.softcap
    if mask is None and setting.causal:
        mask = torch.ones(capped.shape[-2:], dtype=torch.bool, device=query.device)
        mask = mask.tril(capped.size(-1) - capped.size(-2))
    if mask is not None and mask.dtype == torch.bool:
        capped.masked_fill_(~mask, MASKED_SCORE)
    elif mask is not None:
        capped += mask
    return bent, capped.softmax(-1)


def _grouped(of_heads: Tensor, keys: Tensor) -> Tensor:
    """[b, np, sq, n] -> [b, ng, np / ng * sq, n]: queries of the heads that share keys, one head after the other."""
    return of_heads.reshape(keys.size(0), keys.size(1), -1, of_heads.size(-1))


def _heads(grouped: Tensor, query: Tensor) -> Tensor:
    """[b, ng, np / ng * sq, n] -> [b, np, sq, n]."""
    return grouped.view(*query.shape[:3], -1)
