"""Windows in blocks against dense attention in float64: values and gradients around every border of a block.

Float32: sums of up to 200 terms of order one in another order, 1e-5.
"""

import gc
import itertools
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_mixcpt.testing import run_distributed
from tests.unit.models.test_attention import GROUPS, HEAD_SIZE, HEADS, attention, dense_attention, fused_kernels

LENGTHS = (33, 129)
WINDOWS = (1, 16, 17, 33, 100)  # blocks are multiples of 16 queries
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def test_sliding_window() -> None:
    run_distributed(check_sliding_window, 1, cpu_emulation=True)


def check_sliding_window() -> None:
    from megatron_mixcpt.models import sliding_window

    for length, window in itertools.product(LENGTHS, WINDOWS):
        check_values_and_gradients(length, window)
    sliding_window._band.cache_clear()
    with patch.object(sliding_window, "LONGEST", 32):  # longer windows go block by block
        for length, window in itertools.product(LENGTHS, WINDOWS[-2:]):
            check_values_and_gradients(length, window)
    sliding_window._band.cache_clear()
    check_which_layers()
    check_dropout_keeps_the_window()
    check_masks_are_made_once()
    for documents, dtype in itertools.product((False, True), (torch.float32, torch.bfloat16)):
        check_kernels(documents, dtype)


def random_inputs(length: int, batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(length, batch, heads, HEAD_SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def hidden(length: int, window: int) -> Tensor:
    """[1, 1, s, s], True = may not attend."""
    places = torch.arange(length)
    distance = places[:, None] - places
    return ((distance < 0) | (distance >= window))[None, None]


def document_mask(length: int, batch: int) -> Tensor:
    """[b, 1, s, s], True = may not attend: documents of other lengths in each row, causal within each."""
    generator = torch.Generator().manual_seed(7)
    document = (torch.rand(batch, length, generator=generator) < 0.05).cumsum(1)
    return (document[:, :, None] != document[:, None, :])[:, None] | hidden(length, length)


def check_values_and_gradients(length: int, window: int) -> None:
    """Without a mask, and with masks of documents: added, one for all samples, and bool."""
    from megatron_mixcpt.models.query_blocks import MASKED_SCORE

    inputs = random_inputs(length, batch=2)
    core = attention(window_size=(window - 1, 0))
    forbidden = document_mask(length, 2)
    added = torch.zeros(forbidden.shape).masked_fill(forbidden, MASKED_SCORE)
    nothing = torch.zeros(1, 1, length, length, dtype=torch.bool)
    masks = ((None, nothing), (added, forbidden), (added[:1].clone(), forbidden[:1]), (forbidden, forbidden))
    for given, documents in masks:
        expected = dense_attention(*inputs, documents | hidden(length, window), HEAD_SIZE**-0.5)
        weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
        expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # or fail: every other kernel of the CPU writes out the softmax
            result = core(*inputs, given)
        torch.testing.assert_close(result, expected.float(), **CLOSE)
        grads = torch.autograd.grad((result * weights).sum(), inputs)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-5, atol=4e-5)


def check_which_layers() -> None:
    """``window_attn_skip_freq`` as a list says 1 for a window; layers are counted from 1."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.models.sliding_window import window_of_layer

    def windows(size: tuple[int, int] | None, layers: list[int] | int | None) -> list[int | None]:
        shape = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": HEADS, "kv_channels": HEAD_SIZE}
        config = TransformerConfig(**shape, window_size=size, window_attn_skip_freq=layers)
        return [window_of_layer(config, number) for number in range(1, 5)]

    assert windows((7, 0), [0, 1, 1, 0]) == [None, 8, 8, None]
    assert windows((7, 0), None) == [8, 8, 8, 8]
    assert windows((7, 0), 2) == [8, None, 8, None]
    assert windows(None, None) == windows((-1, 0), None) == [None] * 4
    with pytest.raises(ConfigError, match=r"\(7, 1\) looks ahead"):
        windows((7, 1), None)


def check_dropout_keeps_the_window() -> None:
    """With one-hot values the result is the attention's weights: each is dropped, or that without dropout doubled."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    get_cuda_rng_tracker().reset()
    get_cuda_rng_tracker().add("model-parallel-rng", 11)
    length, window = HEAD_SIZE * 3, 16
    query, key, _ = random_inputs(length, batch=1)
    values = torch.eye(HEAD_SIZE).repeat(3, 1)[:, None, None].expand(length, 1, GROUPS, HEAD_SIZE)  # window = one-hot
    kept = attention(window_size=(window - 1, 0))(query, key, values, None)
    dropped = attention(window_size=(window - 1, 0), attention_dropout=0.5).train()(query, key, values, None)
    is_kept = dropped != 0
    assert 0.4 < is_kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[is_kept], 2 * kept[is_kept], **CLOSE)


def check_masks_are_made_once() -> None:
    """All layers with one window share a mask, that of the documents goes with its microbatch."""
    from megatron_mixcpt.models import sliding_window

    sliding_window._band.cache_clear()
    made, limited = [], sliding_window._limited
    core = attention(window_size=(19, 0))
    inputs, documents = random_inputs(100, batch=1), torch.zeros(1, 1, 100, 100)
    with patch.object(sliding_window, "_limited", lambda *arguments: made.append(1) or limited(*arguments)):
        for mask in (documents, documents, None, None):
            core(*inputs, mask)
    assert len(made) == 3  # up to a whole block before, whole blocks, the rest
    assert len(sliding_window._OF_MASKS) == 1 and sliding_window._band.cache_info().currsize == 1
    del documents, mask
    gc.collect()
    assert not sliding_window._OF_MASKS


def check_kernels(documents: bool, dtype: torch.dtype) -> None:
    """On CUDA, no call is left to the kernel that writes out the softmax, nor does any have a mask of s x s."""
    from megatron_mixcpt.models import attention as module

    calls, run = [], module.scaled_dot_product_attention
    mask = torch.zeros(1, 1, 200, 200, dtype=dtype) if documents else None
    with patch.object(module, "scaled_dot_product_attention", lambda *a, **k: calls.append((a, k)) or run(*a, **k)):
        attention(window_size=(31, 0))(*random_inputs(200, batch=1, dtype=dtype), mask)
    assert len(calls) == 3  # the first 32 queries, five blocks, 8 queries
    for arguments, options in calls:
        assert fused_kernels(*arguments, **options)
        assert options["attn_mask"] is None or options["attn_mask"].numel() <= 5 * 32 * 64
