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

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_mixcpt.models.frequencies import attention_factor, hf_frequencies, is_simple
from megatron_mixcpt.models.options import ModelOptions, Rope, attach_options, options_of

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Types whose frequencies change with the length of the sequence."""


class HFRotaryEmbedding(RotaryEmbedding):
    """The engine's rotary embedding with the frequencies of a :class:`~megatron_mixcpt.models.options.Rope`.

    Its output is float32 [s, 1, 1, d] in radians, for ``d`` of a head's channels.
    """

    def __init__(self, rope: Rope, cp_group: torch.distributed.ProcessGroup | None = None) -> None:
        super().__init__(
            rope.num_channels,
            rotary_percent=1.0,
            rotary_base=rope.parameters["rope_theta"],
            rope_scaling=rope.is_engine_llama3,
            rope_scaling_factor=rope.parameters.get("factor", 1.0),
            cp_group=cp_group,
        )
        self.rope = rope
        if not is_simple(rope):
            self.inv_freq, _ = hf_frequencies(rope)

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """Angles of ``max_seq_len`` tokens; the base class calls this with the length over all ranks, and keeps it."""
        if self.rope.kind in LENGTH_DEPENDENT:
            self.inv_freq, _ = hf_frequencies(self.rope, max_seq_len + offset)
        return super().get_emb(max_seq_len, offset)


def configure_model(config: TransformerConfig, options: ModelOptions) -> None:
    """Put a model's options on the engine's configuration, in place, before the model is built from it.

    What it sets does not depend on what another model's options have set before, except that fused kernels of the
    rotation, once switched off, stay so.
    """
    attach_options(config, options)
    factor = 1.0 if options.rope is None else attention_factor(options.rope)
    config.softmax_scale = None
    if options.rope is not None and factor != 1.0:
        if _all_rotates(config, options.rope):
            config.softmax_scale, factor = factor**2 / math.sqrt(config.kv_channels), 1.0
        else:
            config.apply_rope_fusion = False
    # The engine's attention makes of these the factor of cosine and sine, 0.1 * mscale * log(scaling factor) + 1.
    config.yarn_rotary_scaling_factor = math.e
    config.yarn_mscale, config.yarn_mscale_all_dim = 10.0 * (factor - 1.0), 0.0


def _all_rotates(config: TransformerConfig, rope: Rope) -> bool:
    """Whether every channel of every layer rotates, so that the attention factor is one of all scores."""
    skipped = config.no_rope_freq
    return rope.num_channels == rope.head_dim and not (any(skipped) if isinstance(skipped, list) else skipped)


def complete_model(model: GPTModel) -> None:
    """Give a model that the engine has built, in place, what its options ask for; before its first forward pass."""
    options = options_of(model.config)
    if options.rope is not None:
        model.rotary_pos_emb = HFRotaryEmbedding(options.rope, model.pg_collection.cp)
