"""Core attention on ``torch.nn.functional.scaled_dot_product_attention``, for layers without Transformer Engine.

It replaces the engine's ``DotProductAttention`` (megatron/core/transformer/dot_product_attention.py), which
writes out the softmax of every head, [b, np, sq, sk], and keeps it for backward: here no such tensor exists (except
under attention dropout, where PyTorch falls back to it on CPUs). The only parameter is a model's softmax offset,
named as the engine's.

PyTorch chooses the kernel for each call (``sdp_utils.cpp`` in aten/src/ATen/native/transformers/cuda). The flash kernel
takes grouped queries but neither a mask nor float32; cuDNN's takes no float32 and is excluded in deterministic mode;
the memory-efficient one takes both, but grouped queries only since torch 2.14. What all of them decline goes to the
math kernel, which writes out the softmax. So wherever flash cannot serve, keys and values are repeated for every query
head: the memory-efficient kernel then takes the call on every version.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.context_parallel import chunk_numbers, gather_keys_and_values
from megatron_mixcpt.models.layer_options.position_scale import scale_by_position
from megatron_mixcpt.models.layer_options.softcap_attention import ROWS, softcap_attention
from megatron_mixcpt.models.layer_options.softmax_offset import CHANNELS, add_offset_key, build_offset, sharded_offset
from megatron_mixcpt.models.options import options_of
from megatron_mixcpt.models.query_blocks import MASKED_SCORE, QueryBlock
from megatron_mixcpt.models.sliding_window import Chunk, window_blocks, window_of_layer

_FLASH_DTYPES = (torch.bfloat16, torch.float16)


class ScaledDotProductAttention(MegatronModule):
    """softmax(scale * q k^T + mask) v with grouped queries, on this rank's heads and queries.

    The number of heads is that of the tensors passed in, which tensor parallelism has split already. Where context
    parallelism splits the sequence, each rank gathers the keys and values of all (``context_parallel.py``).
    ``config.apply_query_key_layer_scaling`` divides and multiplies by the layer's number, against overflow in float16;
    this attention accumulates in float32 and needs neither.

    Args:
        pg_collection: of which ``cp`` is used, the ranks that share the sequence. None: there are no such.

    Raises:
        ConfigError: for softmax offsets that are not learned, and for windows that look ahead.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
    ) -> None:
        super().__init__(config=config)
        del k_channels, v_channels  # of latent attention: the tensors have them
        _refuse_unsupported(config)
        self.layer_number = layer_number
        self.window = window_of_layer(config, layer_number)
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = 1.0 / math.sqrt(config.kv_channels) if softmax_scale is None else softmax_scale
        self.softcap = options_of(config).attention_softcap
        self.position_scale = options_of(config).position_scale
        self.softmax_offset = build_offset(config) if config.softmax_type == "learnable" else None
        self.dropout_probability = config.attention_dropout if attention_dropout is None else attention_dropout
        self.cp_group = pg_collection.cp if pg_collection is not None else None
        self.tp_group = pg_collection.tp if pg_collection is not None else None
        assert config.context_parallel_size == (1 if self.cp_group is None else self.cp_group.size())

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [sq, b, np, hn], np heads of this rank. Where context parallelism splits the sequence, this rank's
                two chunks of it, as of ``key`` and ``value``.
            key: [sk, b, ng, hn], ng query groups of this rank; ng divides np.
            value: [sk, b, ng, hv]; hv is hn but for latent attention.
            attention_mask: [b or 1, 1, sq, sk of all ranks], either bool, True = may not attend, or of the query's
                dtype, to be added to the scores (0 or ``MASKED_SCORE``). It is the whole mask: a causal one holds the
                future too. None = causal, or nothing, by the mask type. Kernels add masks, and each layer keeps what
                is added for its backward pass: of a bool mask a copy of its own, of one in the query's dtype the mask
                itself.
            attn_mask_type: as the layer was built with, unless given.

        Returns:
            [sq, b, np * hv], of the query's dtype.

        Raises:
            ConfigError: for a bias or packed sequences, which need Transformer Engine: pass the documents as a mask.
        """
        if attention_bias is not None or packed_seq_params is not None:
            raise ConfigError("attention biases and packed sequences need Transformer Engine, which is not enabled")
        mask_type = self.attn_mask_type if attn_mask_type is None else attn_mask_type
        key, value = gather_keys_and_values(key, value, self.cp_group)
        if self.position_scale is not None:
            query = scale_by_position(query, self._chunks(query.size(0), key.size(0)), self.position_scale)
        blocks = self._blocks(query, key.size(0), attention_mask, mask_type == AttnMaskType.causal)
        if self.softcap is not None:
            blocks = [part for block in blocks for part in block.in_parts(ROWS)]
        repeats = query.size(2) // key.size(2)
        flash_serves = attention_mask is None and query.dtype in _FLASH_DTYPES
        if self._slides(key.size(0)) or flash_serves or self.softcap is not None:
            repeats = (
                1  # each block of a window repeats its own keys; flash and the soft cap serve the groups themselves
            )
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        k, v = _repeat_heads(k, repeats), _repeat_heads(v, repeats)
        with self._dropout_random_state():
            contexts = [self._attend(q, k, v, block) for block in blocks]
        context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, dim=2)
        return context.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)

    def _blocks(
        self, query: Tensor, num_keys: int, attention_mask: Tensor | None, causal: bool
    ) -> Sequence[QueryBlock]:
        """The queries in blocks, each with the keys that it may see."""
        queries, keys = slice(0, query.size(0)), slice(0, num_keys)
        mask = attention_mask
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask
        if self.window is not None and self._slides(num_keys):
            assert causal or mask is not None, "windows are for causal attention"
            return window_blocks(self._chunks(query.size(0), num_keys), self.window, mask, query)
        if mask is not None:
            return [QueryBlock(queries, keys, mask)]
        if not causal:
            return [QueryBlock(queries, keys)]
        return [
            QueryBlock(slice(start, start + count), slice(0, position + count), causal=True)
            for start, count, position in self._chunks(query.size(0), num_keys)
        ]

    def _slides(self, num_keys: int) -> bool:
        """Whether the window is shorter than the sequence."""
        return self.window is not None and self.window < num_keys

    def _chunks(self, num_queries: int, num_keys: int) -> Sequence[Chunk]:
        """This rank's queries and their places in the sequence."""
        if self.cp_group is None or self.cp_group.size() == 1:
            assert num_queries == num_keys, "a mask over cached keys must be given"
            return [Chunk(0, num_queries, 0)]
        size = num_queries // 2
        return [Chunk(place * size, size, number * size) for place, number in enumerate(chunk_numbers(self.cp_group))]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, block: QueryBlock) -> Tensor:
        """One call of a kernel. [b, np, sq, hn], [b, ng, sk, hn or hv] twice -> [b, np, queries of the block, hv]."""
        query, key, value = block.take(query, key, value)
        if self.softcap is not None:
            scales = {"scale": self.softmax_scale, "softcap": self.softcap}
            return block.put_back(softcap_attention(query, key, value, block.mask, causal=block.causal, **scales))
        mask = block.mask
        if self.softmax_offset is not None:
            offset, scale = self.softmax_offset, self.softmax_scale
            query, key, value, mask = add_offset_key(query, key, value, mask, offset, scale)
        is_square, shape = query.size(2) == key.size(2), query.shape
        if query.size(1) != key.size(1) and (mask is not None or query.dtype not in _FLASH_DTYPES):
            query, key, value = _repeated(query, key, value, mask)
        if block.causal and not is_square:
            mask = lower_right_mask(query, key.size(2))
        context = scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout_probability if self.training else 0.0,
            is_causal=block.causal and is_square,
            scale=self.softmax_scale,
            enable_gqa=query.size(1) != key.size(1),
        )
        context = context.reshape(*shape[:-1], value.size(-1))
        return block.put_back(context if self.softmax_offset is None else context[..., :-CHANNELS])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Sequence[tuple[int, int, int]] = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """The softmax offset, where there is one."""
        if self.softmax_offset is None:
            return {}
        return sharded_offset(self.softmax_offset, prefix, sharded_offsets, metadata, self.tp_group)

    def _dropout_random_state(self) -> AbstractContextManager:
        """Each tensor-parallel rank drops differently in its own heads; under sequence parallelism the caller forks."""
        if self.config.sequence_parallel or not (self.training and self.dropout_probability):
            return nullcontext()
        return tensor_parallel.get_cuda_rng_tracker().fork()


def lower_right_mask(query: Tensor, num_keys: int) -> Tensor:
    """Causal attention of queries [b, np, sq, hn] to more keys than queries: the last query sees all of them.

    CUDA's kernels know this mask, and it is no tensor to them. The CPU's does not: there all layers share one.
    """
    if query.device.type != "cpu":
        return causal_lower_right(query.size(2), num_keys)
    return _dense_lower_right(query.size(2), num_keys, query.dtype)


@lru_cache(maxsize=2)  # a context-parallel rank has two shapes at a time
def _dense_lower_right(num_queries: int, num_keys: int, dtype: torch.dtype) -> Tensor:
    """[1, 1, queries, keys] on the CPU, what is added to the scores."""
    future = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool, device="cpu").triu(num_keys - num_queries + 1)
    return torch.zeros_like(future, dtype=dtype).masked_fill_(future, MASKED_SCORE)


def _repeated(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """[b, np, sq, hn] and [b, ng, sk, hn] twice, with as many heads of keys as of queries.

    Where all samples share the mask, the groups become samples, and the repeated heads are views.
    """
    repeats = query.size(1) // key.size(1)
    if mask is None or mask.size(0) == 1:
        groups = key.size(1)
        query, key, value = (tensor.unflatten(1, (groups, -1)).flatten(0, 1) for tensor in (query, key, value))
    return query, _repeat_heads(key, repeats), _repeat_heads(value, repeats)


def _repeat_heads(grouped: Tensor, repeats: int) -> Tensor:
    """Each head ``repeats`` times in turn, [b, ng, s, hn] -> [b, ng * repeats, s, hn]; a view where ng is 1."""
    if repeats == 1:
        return grouped
    return grouped.unsqueeze(2).expand(-1, -1, repeats, -1, -1).flatten(1, 2)


def _refuse_unsupported(config: TransformerConfig) -> None:
    """Raise ConfigError for the first flag that only Transformer Engine's attention supports."""
    refused = {
        f"--softmax-type {config.softmax_type}": config.softmax_type not in ("vanilla", "learnable"),
    }
    if options_of(config).attention_softcap is not None and config.softmax_type != "vanilla":
        raise ConfigError("attention whose scores are capped has no softmax offset: the two have not been combined")
    if options_of(config).attention_softcap is not None and config.attention_dropout:
        raise ConfigError(
            f"--attention-dropout {config.attention_dropout}: attention whose scores are capped has no dropout; use 0"
        )
    for flag, given in refused.items():
        if given:
            raise ConfigError(
                f"{flag} needs Transformer Engine, which is not enabled: install it (GPU), or remove the flag"
            )
