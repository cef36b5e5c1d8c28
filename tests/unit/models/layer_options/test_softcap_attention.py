"""Attention with capped scores against transformers' Gemma 2: values, gradients, masks, and blocks of queries."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

from megatron_mixcpt.models.layer_options.softcap_attention import softcap_attention
from megatron_mixcpt.models.query_blocks import MASKED_SCORE, QueryBlock

SCALE, SOFTCAP, HEADS, GROUPS = 0.7, 2.0, 6, 2


def inputs(num_queries: int, num_keys: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value, [2, heads, sequence, 8]; scores reach three times the cap."""
    generator = torch.Generator().manual_seed(5)
    sizes = (HEADS, num_queries), (GROUPS, num_keys), (GROUPS, num_keys)
    return [torch.randn(2, *size, 8, generator=generator).to(dtype).requires_grad_() for size in sizes]


def expected_of(tensors: list[Tensor], hidden: Tensor) -> Tensor:
    """Transformers' eager attention; its softmax is always of float32. ``hidden`` [b or 1, 1, sq, sk]."""
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, training=False)
    mask = torch.zeros(hidden.shape, dtype=tensors[0].dtype).masked_fill_(hidden, torch.finfo(tensors[0].dtype).min)
    context, _ = eager_attention_forward(module, *tensors, mask, scaling=SCALE, softcap=SOFTCAP)
    return context.transpose(1, 2)


def lower_right(num_queries: int, num_keys: int) -> Tensor:
    return torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)


@pytest.mark.parametrize("kind", ["causal", "bool", "added"])
def test_values_and_gradients_are_transformers(kind: str) -> None:
    tensors, hidden = inputs(5, 9), lower_right(5, 9)
    if kind != "causal":
        hidden = hidden | (torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(6)) > 0.6)
        hidden[..., 0] = False
    mask = {"causal": None, "bool": ~hidden, "added": hidden * MASKED_SCORE}[kind]
    context = softcap_attention(*tensors, mask, causal=mask is None, scale=SCALE, softcap=SOFTCAP)
    weights = torch.linspace(-1, 1, context.numel(), dtype=torch.float64).view_as(context)
    expected = expected_of(tensors, hidden)
    # The reference rounds its probabilities to float32.
    torch.testing.assert_close(context, expected, rtol=1e-6, atol=1e-6)
    gradients, expected_gradients = (
        torch.autograd.grad((result * weights).sum(), tensors) for result in (context, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-6)


def test_half_precision_is_rounded_where_transformers_rounds() -> None:
    tensors = inputs(6, 6, torch.bfloat16)
    context = softcap_attention(*tensors, None, causal=True, scale=SCALE, softcap=SOFTCAP)
    assert context.dtype == torch.bfloat16
    # Transformers also rounds the scores after each step, by 2^-8 of up to 2.
    torch.testing.assert_close(context, expected_of(tensors, lower_right(6, 6)), rtol=2**-6, atol=2**-6)


def test_parts_of_a_block_of_queries_come_to_the_same() -> None:
    tensors = inputs(7, 10)
    for mask in (None, ~lower_right(7, 10)):
        block = QueryBlock(slice(0, 7), slice(0, 10), mask, causal=mask is None)
        contexts = [
            softcap_attention(*part.take(*tensors), part.mask, causal=part.causal, scale=SCALE, softcap=SOFTCAP)
            for part in block.in_parts(3)
        ]
        assert [context.size(2) for context in contexts] == [3, 3, 1]
        torch.testing.assert_close(
            torch.cat(contexts, 2), expected_of(tensors, lower_right(7, 10)), rtol=1e-6, atol=1e-6
        )
