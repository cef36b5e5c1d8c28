"""The rotary embedding of transformers, as the table of the engine's.

The engine knows one kind of scaling with constants built in; transformers knows seven with any. So the frequencies come
from transformers' own functions and replace those of the engine's ``RotaryEmbedding``, which keeps all that is
distributed: the table is made from the sequence's length over all ranks, divided under context parallelism and handed
from the first layer of a pipeline stage to the last. The table is an attribute of plain numbers, in no checkpoint and
not cast to lower precision.

Some types also multiply cosine and sine by an attention factor f. Where every channel of every layer rotates, query
times key is then multiplied by f^2, and so the scale of the softmax is, which leaves kernels of the rotation as they
are. Otherwise the engine multiplies them itself, which its fused kernels cannot: those are switched off.
"""

import functools
import math
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_mixcpt.models.frequencies import attention_factor, hf_frequencies, is_simple
from megatron_mixcpt.models.layer_options.multipliers import attention_scale
from megatron_mixcpt.models.layer_rotary import give_layers_their_own
from megatron_mixcpt.models.options import ModelOptions, Rope, options_of

_MOST_TABLES = 32  # as many as the engine keeps


class HFRotaryEmbedding(RotaryEmbedding):
    """The engine's rotary embedding with the frequencies of a :class:`~megatron_mixcpt.models.options.Rope`.

    Its output is float32 [s, 1, 1, d] in radians, for ``d`` of a head's channels.

    Args:
        rope: what config.json says.
        cp_group: the context parallel group, over which the output is divided.
        length: tokens of the sequences, for types that depend on it.
        interleaved: whether neighbouring channels rotate together, rather than those half a head apart.
    """

    def __init__(
        self,
        rope: Rope,
        cp_group: torch.distributed.ProcessGroup | None = None,
        length: int | None = None,
        interleaved: bool = False,
    ) -> None:
        super().__init__(
            rope.num_channels,
            rotary_percent=1.0,
            rotary_interleaved=interleaved,
            rotary_base=rope.parameters["rope_theta"],
            rope_scaling=rope.is_engine_llama3,
            rope_scaling_factor=rope.parameters.get("factor", 1.0),
            cp_group=cp_group,
        )
        self.rope = rope
        if not is_simple(rope):
            self.inv_freq, _ = hf_frequencies(rope, length)


class RotaryEmbeddingByLength(HFRotaryEmbedding):
    """One whose frequencies follow from the length of the sequence, over all ranks: ``dynamic`` and ``longrope``."""

    sequence_length: int | None = None
    """Tokens of what is read, where that is padded; None: as many as there are positions."""

    def __init__(
        self, rope: Rope, cp_group: torch.distributed.ProcessGroup | None = None, interleaved: bool = False
    ) -> None:
        super().__init__(rope, cp_group, interleaved=interleaved)
        self._tables: dict[int | None, HFRotaryEmbedding] = {}

    def forward(  # type: ignore[override]  # the engine's is wrapped in a cache, and so each table's is
        self,
        max_seq_len: int,
        offset: int = 0,
        packed_seq: bool = False,
        cp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Tensor:
        """Angles of ``max_seq_len`` positions, the number over all ranks; arguments as in the base class."""
        length = self.rope.table_length(self.sequence_length or max_seq_len + offset)
        if length not in self._tables:
            if len(self._tables) == _MOST_TABLES:
                self._tables.clear()
            self._tables[length] = HFRotaryEmbedding(self.rope, self.cp_group, length, self.rotary_interleaved)
        return self._tables[length](max_seq_len, offset, packed_seq, cp_group)


class LatentRotaryEmbedding(nn.Module):
    """A rotary embedding as latent attention takes it: together with the factor of cosine and sine.

    Only the channels that all heads share rotate, so the factor is not one of the scores.
    """

    sequence_length: int | None = None
    """As in :class:`RotaryEmbeddingByLength`."""

    def __init__(self, embedding: HFRotaryEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.get_rotary_seq_len = embedding.get_rotary_seq_len

    def forward(self, *positional: Any, **named: Any) -> tuple[Tensor, float]:
        """Arguments as in the engine's embedding."""
        self.embedding.sequence_length = self.sequence_length
        return self.embedding(*positional, **named), attention_factor(self.embedding.rope)


def configure_rotation(config: TransformerConfig, options: ModelOptions) -> None:
    """Put the attention factor of the rotary embedding, and the scores' own multiplier, on the engine's configuration.

    What it sets does not depend on what another model's options have set before, except that fused kernels of the
    rotation, once switched off, stay so.
    """
    factor = 1.0 if options.rope is None or options.layer_ropes else attention_factor(options.rope)
    if options.rope is not None and config.multi_latent_attention:
        config.apply_rope_fusion, factor = False, 1.0  # its kernel makes its own table; see LatentRotaryEmbedding
        config.rotary_scaling_factor, config.mscale_all_dim = options.rope.latent_scaling
    config.softmax_scale = options.attention_multiplier
    if needs_unfused_rotation(config, options):
        config.apply_rope_fusion = False
    elif factor != 1.0:
        config.softmax_scale, factor = factor**2 * attention_scale(config), 1.0
    # The engine's attention makes of these the factor of cosine and sine, 0.1 * mscale * log(scaling factor) + 1.
    config.yarn_rotary_scaling_factor = math.e
    config.yarn_mscale, config.yarn_mscale_all_dim = 10.0 * (factor - 1.0), 0.0


def needs_unfused_rotation(config: TransformerConfig, options: ModelOptions) -> bool:
    """Whether there is an attention factor that is not one of all scores: some channel or layer does not rotate."""
    rope, skipped = options.rope, config.no_rope_freq
    if rope is None or options.layer_ropes or config.multi_latent_attention or attention_factor(rope) == 1.0:
        return False
    return rope.num_channels < rope.head_dim or bool(any(skipped) if isinstance(skipped, list) else skipped)


def replace_rotation(model: GPTModel) -> None:
    """Give a model that the engine has built, in place, the rotary embedding that its options ask for."""
    options, config = options_of(model.config), model.config
    make = functools.partial(_embedding, cp_group=model.pg_collection.cp, interleaved=config.rotary_interleaved)
    if options.layer_ropes:
        model.rotary_pos_emb = give_layers_their_own(model, options.layer_ropes, make)
    elif options.rope is not None:
        model.rotary_pos_emb = make(options.rope)
    if config.multi_latent_attention:
        model.rotary_pos_emb = LatentRotaryEmbedding(model.rotary_pos_emb)
        for layer in model.decoder.layers:  # each would have its own, all with the same tables
            layer.self_attention.rotary_pos_emb = model.rotary_pos_emb


def _embedding(rope: Rope, cp_group: torch.distributed.ProcessGroup, interleaved: bool) -> HFRotaryEmbedding:
    kind = HFRotaryEmbedding if rope.short_length is None else RotaryEmbeddingByLength
    return kind(rope, cp_group, interleaved=interleaved)
