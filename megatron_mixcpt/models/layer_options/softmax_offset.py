"""Attention sinks: a learned score for each head that takes part in the softmax and has no value (gpt-oss).

    sum_j exp(s_j) v_j / (exp(offset) + sum_j exp(s_j))

This is attention with one more key whose value is zero and whose score is the offset, which any kernel computes:
queries get channels that hold the offset over the scale, and the added key alone has ones there. So the gradient of the
offset comes from the kernel too. The parameter is the engine's, ``core_attention.softmax_offset``, which Transformer
Engine's attention has as well (``softmax_type`` "learnable"): one number for each head of this tensor-parallel rank.
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.weak import WeakTensorKeyDictionary

from megatron_mixcpt.models.parameter_device import parameter_device
from megatron_mixcpt.models.query_blocks import MASKED_SCORE

CHANNELS = 8
"""Added to queries, keys and values, of which two are used: kernels want multiples of eight."""

MASKED_KEYS = 16
"""Keys added beside a mask, all but the first masked: kernels copy masks whose rows are not aligned so."""

_EXTENDED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""For each mask that is in use, the one with the added keys: all layers share it."""


def build_offset(config: TransformerConfig) -> nn.Parameter:
    """The parameter of one layer, [heads of this rank], of the parameters' dtype."""
    device = parameter_device(config)
    heads = config.num_attention_heads // config.tensor_model_parallel_size
    offset = nn.Parameter(torch.zeros(heads, device=device, dtype=config.params_dtype))
    if config.perform_initialization and config.init_method is not None:
        config.init_method(offset.data)
    return offset


def mark_offsets(model: nn.Module) -> None:
    """Say that tensor parallelism divides the offsets of a model, in place, which the engine's attention leaves out.

    The norm of the gradients would otherwise count those of the first tensor-parallel rank alone.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("core_attention.softmax_offset"):
            set_tensor_model_parallel_attributes(parameter, True, 0, 1)


def add_offset_key(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, offset: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """What a kernel is given in the place of its arguments; the last ``CHANNELS`` of its result are zeros.

    In half precision the offset over the scale is in two channels, the second of which holds what rounding has taken
    from the first.

    Args:
        query: [b, np, sq, hn].
        key, value: [b, ng, sk, hn].
        mask: [b or 1, 1, sq, sk], bool, True = may attend, or what is added to the scores; None: causal, the last
            query seeing all keys.
        offset: [np].
        scale: of the scores.

    Returns:
        The same with ``hn + CHANNELS`` channels, and with one more key first; beside a mask ``MASKED_KEYS`` more.
    """
    num_keys = 1 if mask is None else MASKED_KEYS
    wanted = offset.to(torch.promote_types(offset.dtype, torch.float32)) / scale
    rounded = wanted.to(query.dtype)
    channels = pad(torch.stack([rounded, (wanted - rounded).to(query.dtype)], dim=-1), (0, CHANNELS - 2))
    query = torch.cat([query, channels[None, :, None].expand(query.size(0), -1, query.size(2), -1)], dim=-1)
    ones = key.new_zeros(num_keys, CHANNELS)
    ones[0, :2] = 1.0
    added = pad(ones, (key.size(-1), 0)).expand(*key.shape[:2], -1, -1)
    key = torch.cat([added, pad(key, (0, CHANNELS))], dim=2)
    value = pad(value, (0, CHANNELS, num_keys, 0))
    return query, key, value, None if mask is None else _extended(mask)


def _extended(mask: Tensor) -> Tensor:
    """The mask with the added keys: the first may be seen by all queries, the others by none."""
    if mask not in _EXTENDED:
        seen, hidden = (True, False) if mask.dtype == torch.bool else (0.0, MASKED_SCORE)
        added = torch.full_like(mask[..., :1], hidden).expand(*mask.shape[:-1], MASKED_KEYS).clone()
        added[..., 0] = seen
        _EXTENDED[mask] = torch.cat([added, mask], dim=-1)
    return _EXTENDED[mask]


def sharded_offset(
    offset: nn.Parameter, prefix: str, outer: Sequence[tuple[int, int, int]], metadata: dict | None, tp_group: Any
) -> ShardedStateDict:
    """The parameter in a checkpoint, as the engine's attention has it: heads of all tensor-parallel ranks."""
    groups = ensure_metadata_has_dp_cp_group(metadata)
    return make_sharded_tensors_for_checkpoint(
        {"softmax_offset": offset},
        prefix,
        {"softmax_offset": 0},
        outer,
        tp_group=tp_group,
        dp_cp_group=groups["dp_cp_group"],
    )
