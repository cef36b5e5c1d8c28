"""A rotary embedding for each layer, for models whose kinds of layers have different ones.

The engine hands one table to all layers. Here it is one table for each different embedding, [kinds, s, 1, 1, d], which
goes the engine's way through recomputation, and each layer's attention takes its own when it is called.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.attention import ScaledDotProductAttention
from megatron_mixcpt.models.frequencies import attention_factor
from megatron_mixcpt.models.options import Rope


class RotaryEmbeddings(torch.nn.Module):
    """Several rotary embeddings as one: their angles, float32 [kinds, s, 1, 1, d], are called for together."""

    sequence_length: int | None = None
    """As in :class:`~megatron_mixcpt.models.rotary.RotaryEmbeddingByLength`."""

    def __init__(self, embeddings: Sequence[RotaryEmbedding]) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(embeddings)
        self.get_rotary_seq_len = embeddings[0].get_rotary_seq_len

    def forward(self, *positional: Any, **named: Any) -> Tensor:
        """Arguments as in the engine's embedding."""
        for embedding in self.embeddings:
            embedding.sequence_length = self.sequence_length
        return torch.stack([embedding(*positional, **named) for embedding in self.embeddings])


def give_layers_their_own(
    model: GPTModel, ropes: Sequence[Rope], make: Callable[[Rope], RotaryEmbedding]
) -> RotaryEmbeddings:
    """Make the attention of each layer of a stage, in place, take its own table; returns the embeddings.

    Args:
        model: as the engine has built it.
        ropes: one for each layer of the whole model.
        make: an embedding of one kind.

    Raises:
        ConfigError: the embeddings are of different sizes, or an attention factor needs attention that it lacks.
    """
    kinds = [rope for place, rope in enumerate(ropes) if rope not in ropes[:place]]
    if len({rope.num_channels for rope in kinds}) > 1:
        raise ConfigError(
            "rope_parameters: different numbers of channels rotate in different layers, which is not built"
        )
    for layer in model.decoder.layers:
        rope = ropes[layer.layer_number - 1]
        layer.self_attention.register_forward_pre_hook(_with_table(kinds.index(rope)), with_kwargs=True)
        if (factor := attention_factor(rope)) != 1.0:
            core = layer.self_attention.core_attention
            if not isinstance(core, ScaledDotProductAttention) or rope.num_channels < rope.head_dim:
                raise ConfigError(
                    f"rope_type {rope.kind} in some layers only: its attention factor needs --transformer-impl local, "
                    "and that all channels of a head rotate"
                )
            core.softmax_scale *= factor**2
    return RotaryEmbeddings([make(rope) for rope in kinds])


def _with_table(kind: int) -> Callable[..., tuple[tuple, dict[str, Any]]]:
    def hook(attention: torch.nn.Module, positional: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        table = named.get("rotary_pos_emb")
        return positional, named if table is None else {**named, "rotary_pos_emb": table[kind]}

    return hook
