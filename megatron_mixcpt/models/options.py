"""What a model is beyond the engine's own configuration: plain data, made from config.json, read by our modules.

The tables of ``conversion/architectures`` make the options of a model. :func:`attach_options` puts them on the engine's
``TransformerConfig``, of which the student and the teacher each have their own, and :func:`options_of` reads them back
wherever a module has that configuration. Every field has a default that means "as the engine does it".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tables are read by tools that have no use for the engine
    from megatron.core.transformer.transformer_config import TransformerConfig

# The engine hard-codes these in megatron/core/models/common/embeddings/rotary_pos_embedding.py (_apply_scaling).
ENGINE_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

_ATTRIBUTE = "mixcpt_options"


@dataclass(frozen=True)
class Rope:
    """A rotary embedding, in the terms of transformers' configuration, from which its table follows."""

    parameters: Mapping[str, Any]
    """``rope_parameters`` as transformers 5 completes them; they have ``rope_type`` and ``rope_theta``."""
    head_dim: int
    """Channels of an attention head."""
    num_channels: int
    """Those of them that the table has angles for; the rest pass unrotated."""
    max_position_embeddings: int
    """Of config.json, in tokens: what ``dynamic`` scaling starts from, and other types where no factor is given."""

    @property
    def kind(self) -> str:
        """``rope_type``."""
        return self.parameters["rope_type"]

    @property
    def short_length(self) -> int | None:
        """The longest sequence, in tokens, whose table is that of all shorter ones; None: all sequences have one."""
        if self.kind == "dynamic":
            return self.max_position_embeddings
        return self.parameters["original_max_position_embeddings"] if self.kind == "longrope" else None

    def table_length(self, length: int) -> int | None:
        """A length with the same table as ``length``, and the same number for all of that table; None: any."""
        if self.short_length is None:
            return None
        if length <= self.short_length:
            return self.short_length
        return length if self.kind == "dynamic" else self.short_length + 1

    @property
    def is_engine_llama3(self) -> bool:
        """Whether this is the one kind of scaling that the engine has built in."""
        return self.kind == "llama3" and all(self.parameters[key] == value for key, value in ENGINE_LLAMA3.items())

    @property
    def latent_scaling(self) -> tuple[float, float]:
        """Factor f and ``mscale_all_dim`` m, by which latent attention's scores are multiplied: (0.1 m ln f + 1)^2."""
        if self.kind == "default":
            return 1.0, 0.0
        return self.parameters.get("factor") or 1.0, self.parameters.get("mscale_all_dim") or 0.0


@dataclass(frozen=True)
class PositionScale:
    """Queries grow with their position p, from 0: q * (1 + beta * ln(1 + floor(p / length)))."""

    beta: float
    length: int
    """Tokens; queries before it stay as they are."""


@dataclass(frozen=True)
class ModelOptions:
    """The options of one model.

    In the equations x is a layer's input, f attention or the MLP with the norm before it, and h a head's channels.
    """

    rope: Rope | None = None
    """The rotary embedding; None: the one that the engine makes of its arguments."""
    layer_ropes: tuple[Rope, ...] = ()
    """One for each layer of the model, where they differ; they then go before ``rope``."""
    position_scale: PositionScale | None = None
    """By which queries grow with their position, after the rotary embedding."""

    attention_output_bias: bool = False
    """Whether attention's output projection has a bias; those of query, key and value are the engine's to have."""
    mlp_bias: bool = False
    """Whether both linear layers of an MLP, or of each expert, have one."""
    router_bias: bool = False
    """Whether the scores of the experts have one, before the best are chosen (gpt-oss)."""

    norm_bias: bool = True
    """Whether a LayerNorm has a bias; an RMSNorm has none."""
    pre_norms: bool = True
    """Whether attention and the MLP read a norm of x, rather than x itself."""
    post_norms: bool = False
    """Whether the outputs of attention and MLP go through a norm: x + norm(f(x))."""
    separate_norms: bool = False
    """Whether norms are modules of their own where Transformer Engine would have them within linear layers."""
    qk_norm_over_heads: bool = False
    """Whether the norms of query and key are over all heads' channels together, rather than over those of each."""
    parallel_layers: bool = False
    """Whether attention and MLP read the same norm, and both are added: x + attention(norm(x)) + mlp(norm(x))."""

    activation: str | None = None
    """The MLP's activation by its name in transformers (``ACT2FN``); None: the engine's arguments name it."""

    embedding_multiplier: float = 1.0
    """The first layer reads multiplier * embedding."""
    rounds_embedding_multiplier: bool = False
    """Whether that multiplier is rounded to the embedding's dtype first, as Gemma's is."""
    residual_multiplier: float = 1.0
    """x + multiplier * f(x)."""
    attention_multiplier: float | None = None
    """Scores are multiplier * q . k; None: q . k / sqrt(h)."""
    logit_multiplier: float = 1.0
    """Logits are multiplier * output_weight . hidden."""

    attention_softcap: float | None = None
    """Scores become cap * tanh(score / cap), before any mask."""
    final_softcap: float | None = None
    """Logits become cap * tanh(logit / cap), after their multiplier."""

    latent_norm_epsilon: float | None = None
    """Epsilon of the norms within latent attention; None: as that of all norms."""
    router_group_experts: int | None = None
    """A group of experts scores as the sum of this many of its best; None: of as many as the engine takes."""

    engine_config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the engine's ``TransformerConfig`` that none of its arguments sets, such as an activation's offset."""


def attach_options(config: "TransformerConfig", options: ModelOptions) -> None:
    """Put the options on the engine's configuration, in place; a copy of the configuration keeps them."""
    setattr(config, _ATTRIBUTE, options)


def options_of(config: "TransformerConfig") -> ModelOptions:
    """The options of the model that ``config`` belongs to; all defaults where none were attached."""
    return getattr(config, _ATTRIBUTE, ModelOptions())
