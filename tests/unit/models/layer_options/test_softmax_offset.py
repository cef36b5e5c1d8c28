"""Attention with sinks beside transformers' eager attention of gpt-oss in float64: values, gradients, bfloat16."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

from megatron_mixcpt.models.layer_options.softmax_offset import CHANNELS, add_offset_key
from megatron_mixcpt.models.query_blocks import MASKED_SCORE

SAMPLES, HEADS, GROUPS, LENGTH, CHANNELS_OF_HEAD, SCALE = 2, 6, 2, 19, 16, 0.3
# float32: sums of 19 terms of order one, in another order. bfloat16: inputs and result are rounded to 8 bits.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}


def tensors(dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value, and offsets of a size that has digits beyond bfloat16's."""
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, GROUPS, GROUPS)
    made = [torch.randn(SAMPLES, count, LENGTH, CHANNELS_OF_HEAD, generator=generator) for count in heads]
    made.append(torch.randn(HEADS, generator=generator) * 2 + 1)
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def visible() -> Tensor:
    """[1, 1, s, s]: causal in two documents, True = may attend."""
    allowed = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed[7:, :7] = False
    return allowed[None, None]


def reference(inputs: list[Tensor], allowed: Tensor) -> Tensor:
    """transformers', [b, heads, s, channels], in float64."""
    query, key, value, sinks = (tensor.double() for tensor in inputs)
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=HEADS // GROUPS, training=False)
    added = torch.zeros_like(allowed, dtype=torch.float64).masked_fill(~allowed, MASKED_SCORE)
    return eager_attention_forward(module, query, key, value, added, SCALE)[0].transpose(1, 2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mask", ["causal", "bool", "added"])
def test_values_and_gradients_are_transformers(mask: str, dtype: torch.dtype) -> None:
    inputs, allowed = tensors(dtype), visible()
    if mask == "causal":
        allowed = torch.ones_like(allowed).tril()
    given = {"causal": None, "bool": allowed, "added": torch.zeros_like(allowed, dtype=dtype)}[mask]
    given = given.masked_fill(~allowed, MASKED_SCORE) if mask == "added" else given
    query, key, value, extended = add_offset_key(*inputs[:3], given, inputs[3], SCALE)
    if extended is None:  # the last query sees all keys
        extended = torch.ones(LENGTH, LENGTH + 1, dtype=torch.bool).tril(1)
    result = scaled_dot_product_attention(query, key, value, attn_mask=extended, scale=SCALE, enable_gqa=True)
    assert not result[..., -CHANNELS:].any()
    result, expected = result[..., :-CHANNELS], reference(inputs, allowed)
    factor = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((result * factor).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * factor).sum(), inputs)
    torch.testing.assert_close(result, expected.to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(grads[:3], expected_grads[:3], **TOLERANCE[dtype])
    # That of an offset sums one term for each of 38 queries, with errors of either sign.
    tolerance = {name: 38**0.5 * value for name, value in TOLERANCE[dtype].items()}
    torch.testing.assert_close(grads[3], expected_grads[3], **tolerance)


def test_an_offset_is_exact_in_half_precision() -> None:
    """1.00390625 needs nine bits: over the scale 0.3 it is in two channels, whose sum has sixteen."""
    query, key, value, _ = tensors(torch.bfloat16)
    offset = torch.full((HEADS,), 1.00390625)
    extended, added, _, _ = add_offset_key(query, key, value, None, offset, SCALE)
    score = (extended.double() @ added.double()[:, :1, :1].mT).squeeze() * SCALE
    torch.testing.assert_close(score, offset.double()[None, :, None].expand_as(score), rtol=2**-16, atol=0)


def test_layers_share_one_mask() -> None:
    query, key, value, offset = tensors(torch.float32)
    mask = visible()
    first, second = (add_offset_key(query, key, value, mask, offset, SCALE)[3] for _ in range(2))
    assert first is second
