"""Scaled-dot-product attention against a dense float64 reference, with causal and per-document masks."""

import itertools
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_mixcpt.testing import run_distributed

SEQUENCE, BATCH, HEADS, GROUPS, HEAD_SIZE = 33, 2, 6, 2, 16
# float32: sums of 33 terms of order one, in another order. bfloat16: inputs and result are rounded to 8 bits.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}


def test_attention() -> None:
    run_distributed(check_attention, 1, cpu_emulation=True)


def check_attention() -> None:
    for dtype in TOLERANCE:
        for mask in (None, document_mask(), document_mask()[:1]):
            check_values_and_gradients(dtype, mask)
    check_masks_that_are_added()
    for case in itertools.product((1, GROUPS, HEADS), ("causal", "bool", "added"), TOLERANCE):
        check_kernels(*case)
    check_softmax_scale_and_mask_type()
    for window in (None, 4):
        check_capped_scores(window)
    check_a_document_sees_itself_alone()
    check_dropout()
    check_what_is_not_supported_is_refused()


def attention(mask_type: str = "causal", softmax_scale: float | None = None, **overrides):
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.attention import ScaledDotProductAttention

    shape = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": HEADS, "kv_channels": HEAD_SIZE}
    config = TransformerConfig(**shape | {"num_query_groups": GROUPS, "attention_dropout": 0.0} | overrides)
    return ScaledDotProductAttention(config, 1, AttnMaskType[mask_type], "self", softmax_scale=softmax_scale)


def document_mask() -> Tensor:
    """[b, 1, s, s], True = masked: documents of other lengths in each row, causal within each."""
    starts = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
    starts[0, [5, 20]] = 1
    starts[1, [1, 13, 32]] = 1
    document = starts.cumsum(1)
    other = document[:, :, None] != document[:, None, :]
    future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    return (other | future)[:, None]


def random_inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(SEQUENCE, BATCH, heads, HEAD_SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, masked: Tensor, scale: float) -> Tensor:
    """In float64, head by head: [s, b, n, d], [s, b, g, d] twice, [b or 1, 1, s, s] -> [s, b, n * d]."""
    heads = []
    for head in range(query.size(2)):
        group = head * key.size(2) // query.size(2)
        q, k, v = (x.double().transpose(0, 1) for x in (query[:, :, head], key[:, :, group], value[:, :, group]))
        scores = (scale * q @ k.transpose(1, 2)).masked_fill(masked[:, 0], -torch.inf)
        heads.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(heads, dim=-1)


def check_values_and_gradients(dtype: torch.dtype, mask: Tensor | None) -> None:
    inputs = random_inputs(dtype)
    future = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    expected = dense_attention(*inputs, future if mask is None else mask, HEAD_SIZE**-0.5)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # or fail: every other kernel of the CPU writes out the softmax
        result = attention()(*inputs, mask)
    assert result.shape == (SEQUENCE, BATCH, HEADS * HEAD_SIZE) and result.dtype == dtype
    torch.testing.assert_close(result, expected.to(dtype), **TOLERANCE[dtype])
    grads = torch.autograd.grad((result * weights).sum(), inputs)
    torch.testing.assert_close(grads, expected_grads, rtol=TOLERANCE[dtype]["rtol"], atol=4 * TOLERANCE[dtype]["atol"])


def check_masks_that_are_added() -> None:
    """What the trainers pass: bit for bit the result of the bool mask, whose forbidden keys weigh 0."""
    from megatron_mixcpt.models.query_blocks import MASKED_SCORE

    for dtype in TOLERANCE:
        inputs, mask = random_inputs(dtype), document_mask()
        added = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, MASKED_SCORE)
        torch.testing.assert_close(attention()(*inputs, added), attention()(*inputs, mask), rtol=0, atol=0)


def check_softmax_scale_and_mask_type() -> None:
    from megatron.core.transformer.enums import AttnMaskType

    inputs = random_inputs(torch.float32)
    nothing = torch.zeros(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool)
    expected = dense_attention(*inputs, nothing, 0.7).float()
    tolerance = TOLERANCE[torch.float32]
    torch.testing.assert_close(attention("no_mask", softmax_scale=0.7)(*inputs, None), expected, **tolerance)
    by_argument = attention(softmax_scale=0.7)(*inputs, None, attn_mask_type=AttnMaskType.no_mask)
    torch.testing.assert_close(by_argument, expected, **tolerance)
    scaled_by_layer = attention(softmax_scale=0.7, apply_query_key_layer_scaling=True)
    torch.testing.assert_close(scaled_by_layer(*inputs, nothing), expected, **tolerance)


def check_capped_scores(window: int | None) -> None:
    """In blocks of 8 queries: cap * tanh(score / cap) before the mask, of windows and of documents."""
    inputs, cap = random_inputs(torch.float32), 1.5
    position = torch.arange(SEQUENCE)
    distance = position[:, None] - position
    for mask in (None, document_mask()):
        masked = ((distance < 0) if mask is None else mask) | (distance >= (window or SEQUENCE))
        heads = []
        for head in range(HEADS):
            q, k, v = (
                x[:, :, index].double().transpose(0, 1)
                for x, index in zip(inputs, (head, head // 3, head // 3), strict=True)
            )
            scores = cap * torch.tanh(HEAD_SIZE**-0.5 * q @ k.mT / cap)
            heads.append(
                (scores.masked_fill(masked.view(-1, SEQUENCE, SEQUENCE), -torch.inf).softmax(-1) @ v).transpose(0, 1)
            )
        expected = torch.cat(heads, dim=-1)
        core = attention(window_size=(window - 1, 0) if window else None)
        core.softcap = cap
        with patch("megatron_mixcpt.models.attention.ROWS", 8):
            actual = core(*inputs, mask)
        torch.testing.assert_close(actual.double(), expected, **TOLERANCE[torch.float32])
        expected_grads, grads = (torch.autograd.grad(result.square().sum(), inputs) for result in (expected, actual))
        torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


def check_a_document_sees_itself_alone() -> None:
    inputs = [tensor.detach()[:, :1] for tensor in random_inputs(torch.float32)]
    together = attention()(*inputs, document_mask()[:1])
    alone = attention()(*(tensor[5:20] for tensor in inputs), None)
    torch.testing.assert_close(together[5:20], alone, **TOLERANCE[torch.float32])


def check_dropout() -> None:
    """Drawn from the tensor-parallel ranks' own random state, and only in training."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    get_cuda_rng_tracker().reset()
    get_cuda_rng_tracker().add("model-parallel-rng", 11)
    inputs, dropping = random_inputs(torch.float32), attention(attention_dropout=0.5)
    outside = torch.get_rng_state()
    kept, first, second = dropping.eval()(*inputs, None), *(dropping.train()(*inputs, None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), outside)
    torch.testing.assert_close(kept, attention()(*inputs, None), rtol=0, atol=0)
    assert not torch.allclose(first, second) and not torch.allclose(first, kept)


def check_what_is_not_supported_is_refused() -> None:
    from megatron_mixcpt.errors import ConfigError

    with pytest.raises(ConfigError, match="needs Transformer Engine"):
        attention(softmax_type="off-by-one")


def check_kernels(groups: int, kind: str, dtype: torch.dtype) -> None:
    """On CUDA, no call is left to the kernel that writes out the softmax; nor is cuDNN's needed, which may be off."""
    from megatron_mixcpt.models import attention as module

    calls = []
    query, key = (torch.zeros(SEQUENCE, BATCH, heads, HEAD_SIZE, dtype=dtype) for heads in (HEADS, groups))
    mask = {"causal": None, "bool": document_mask(), "added": document_mask().to(dtype)}[kind]
    run = module.scaled_dot_product_attention
    with patch.object(module, "scaled_dot_product_attention", lambda *a, **k: calls.append((a, k)) or run(*a, **k)):
        attention()(query, key, key, mask)
    ((arguments, options),) = calls
    assert fused_kernels(*arguments, **options), f"left to the math kernel: {groups} groups, {kind} mask, {dtype}"


def fused_kernels(
    query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, enable_gqa: bool, **_: object
) -> list[str]:
    """The kernels for an H100 that take a call, by the conditions of sdp_utils.cpp in torch 2.11, cuDNN's left out.

    (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, ``can_use_flash_attention`` and
    ``can_use_mem_efficient_attention``.)
    """
    assert query.dim() == key.dim() == value.dim() == 4 and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    same_heads = query.size(1) == key.size(1) == value.size(1)
    half = query.dtype in (torch.bfloat16, torch.float16)
    aligned = query.size(-1) % (8 if half else 4) == 0
    fits_mask = attn_mask is None or attn_mask.dtype in (torch.bool, query.dtype)
    taken = {
        "flash": half and attn_mask is None and (same_heads or enable_gqa),
        "efficient": same_heads and aligned and fits_mask,
    }
    return [name for name, takes in taken.items() if takes]
