"""Attention over a sequence that ranks share, against dense attention of the whole: values, gradients and kernels."""

import itertools
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.testing import run_distributed
from tests.unit.models.test_attention import TOLERANCE, dense_attention, fused_kernels

SEQUENCE, BATCH, HEADS, GROUPS, HEAD_SIZE = 48, 2, 6, 2, 16
# Which chunks of the sequence each rank holds, as the engine cuts it (megatron/core/utils.py).
CHUNKS = {2: ((0, 3), (1, 2)), 4: ((0, 7), (1, 6), (2, 5), (3, 4))}


def test_attention() -> None:
    run_distributed(check_attention, 4, cpu_emulation=True)


def check_attention() -> None:
    pairs = [dist.new_group(ranks) for ranks in ([0, 1], [2, 3])]
    for group, dtype, masked in itertools.product(
        (pairs[dist.get_rank() // 2], dist.group.WORLD), TOLERANCE, ("causal", "bool", "added")
    ):
        for window in (None, 20):
            check_values_and_gradients(group, dtype, masked, window)


def check_values_and_gradients(group: dist.ProcessGroup, dtype: torch.dtype, masked: str, window: int | None) -> None:
    from megatron_mixcpt.models import attention as module
    from megatron_mixcpt.models.query_blocks import MASKED_SCORE

    whole = random_inputs(dtype)
    forbidden = document_mask() if masked != "causal" else future()
    places = torch.arange(SEQUENCE)
    seen = forbidden if window is None else forbidden | (places[:, None] - places >= window)
    expected = dense_attention(*whole, seen, HEAD_SIZE**-0.5)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    expected_grads = torch.autograd.grad((expected * weights).sum(), whole)

    inputs = [mine(tensor.detach(), group).requires_grad_() for tensor in whole]
    mask = None if masked == "causal" else mine(forbidden, group, dim=2)
    if masked == "added":
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, MASKED_SCORE)
    calls = []
    run = module.scaled_dot_product_attention
    with patch.object(module, "scaled_dot_product_attention", lambda *a, **k: calls.append((a, k)) or run(*a, **k)):
        result = attention(group, window)(*inputs, mask)
    grads = torch.autograd.grad((result * mine(weights, group)).sum(), inputs)

    torch.testing.assert_close(result, mine(expected, group).to(dtype), **TOLERANCE[dtype])
    # A gradient is a sum over all ranks' queries, in bfloat16 rounded on each rank and at each addition.
    tolerance = {"rtol": TOLERANCE[dtype]["rtol"], "atol": 4 * TOLERANCE[dtype]["atol"]}
    torch.testing.assert_close(grads, [mine(grad, group) for grad in expected_grads], **tolerance)
    if window is not None:
        return
    assert len(calls) == (2 if masked == "causal" else 1)
    for (query, key, _), options in calls:
        if options["attn_mask"] is not None and masked != "causal":
            assert fused_kernels(query, key, key, **options)
        elif query.size(2) != key.size(2):
            check_kernels(query.size(2), key.size(2), dtype, key.size(1))
    if masked == "causal":  # the same number of scores on each rank, and none that no query may see
        scores = sum(arguments[0].size(2) * arguments[1].size(2) for arguments, _ in calls)
        assert scores == (SEQUENCE // (2 * group.size())) ** 2 * (2 * group.size() + 1)


def check_kernels(num_queries: int, num_keys: int, dtype: torch.dtype, groups: int) -> None:
    """Elsewhere than on a CPU, a rank's causal mask is no tensor: flash and the memory-efficient kernel know it."""
    from torch.nn.attention.bias import CausalBias, CausalVariant

    from megatron_mixcpt.models.attention import lower_right_mask

    mask = lower_right_mask(torch.empty(BATCH, HEADS, num_queries, HEAD_SIZE, dtype=dtype, device="meta"), num_keys)
    assert isinstance(mask, CausalBias) and mask.variant == CausalVariant.LOWER_RIGHT
    assert (mask.seq_len_q, mask.seq_len_kv) == (num_queries, num_keys)
    assert groups == (GROUPS if dtype == torch.bfloat16 else HEADS)  # flash serves groups, the other does not


def attention(group: dist.ProcessGroup, window: int | None):
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.attention import ScaledDotProductAttention

    shape = {"num_layers": 1, "hidden_size": 64, "num_attention_heads": HEADS, "kv_channels": HEAD_SIZE}
    config = TransformerConfig(
        **shape,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        context_parallel_size=group.size(),
        window_size=None if window is None else (window - 1, 0),
    )
    groups = ProcessGroupCollection(cp=group)
    return ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self", pg_collection=groups)


def mine(tensor: Tensor, group: dist.ProcessGroup, dim: int = 0) -> Tensor:
    """This rank's share of a tensor with a sequence dimension."""
    chunks = tensor.chunk(2 * group.size(), dim)
    return torch.cat([chunks[number] for number in CHUNKS[group.size()][group.rank()]], dim)


def random_inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(SEQUENCE, BATCH, heads, HEAD_SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def future() -> Tensor:
    return torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)


def document_mask() -> Tensor:
    """[b, 1, s, s], True = masked: documents that begin and end within chunks, and one that spans several."""
    starts = torch.zeros(BATCH, SEQUENCE, dtype=torch.int64)
    starts[0, [5, 20, 21]] = 1
    starts[1, [1, 40]] = 1
    document = starts.cumsum(1)
    return (document[:, :, None] != document[:, None, :])[:, None] | future()
