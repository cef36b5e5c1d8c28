"""The sizes of a model that its memory depends on: built in for a few published models, else from config.json."""

from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.planning.layers import LayerShape, LinearShape, count_layers, count_norm


@dataclass(frozen=True)
class ModelShape:
    """A decoder, with grouped queries and MLPs or experts; names as the engine's."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    kv_channels: int
    max_position_embeddings: int
    tied: bool = False
    """Whether the output weight is the embedding."""
    qkv_bias: bool = False
    qk_layernorm: bool = False
    num_experts: int = 0
    """Experts of each layer that has some; 0: a dense model."""
    moe_ffn_hidden_size: int = 0
    moe_router_topk: int = 0
    """Experts that each token goes to."""
    gated: bool = True
    """Whether an MLP multiplies two halves, of which one goes through the activation."""
    counted_layers: tuple[LayerShape, ...] = ()
    """Each layer as the rules of its family have it; empty: Llama's layers, or a mixture of experts' with them."""
    counted_norm: int = 0
    """Parameters of the last norm; 0: the hidden size."""

    @property
    def query_size(self) -> int:
        """Columns of all heads' queries."""
        return self.num_attention_heads * self.kv_channels

    @property
    def kv_size(self) -> int:
        """Columns of all groups' keys; the values have as many."""
        return self.num_query_groups * self.kv_channels

    @property
    def layers(self) -> tuple[LayerShape, ...]:
        """All layers, the first one first."""
        return self.counted_layers or (self._layer(),) * self.num_layers

    def _layer(self) -> LayerShape:
        qkv, hidden = self.query_size + 2 * self.kv_size, self.hidden_size
        inner = 0 if self.num_experts else self.ffn_hidden_size
        return LayerShape(
            divided=hidden * (qkv + self.query_size + 3 * inner) + (qkv if self.qkv_bias else 0),
            copied=2 * hidden + (2 * self.kv_channels if self.qk_layernorm else 0) + hidden * self.num_experts,
            expert=3 * hidden * self.moe_ffn_hidden_size if self.num_experts else 0,
            inner=inner,
            linears=self._linears(inner),
        )

    def _linears(self, inner: int) -> tuple[LinearShape, ...]:
        attention = (
            LinearShape("linear_qkv", self.query_size + 2 * self.kv_size, self.hidden_size),
            LinearShape("linear_proj", self.hidden_size, self.query_size),
        )
        if not inner:
            return attention
        mlp = (
            LinearShape("linear_fc1", 2 * inner, self.hidden_size),
            LinearShape("linear_fc2", self.hidden_size, inner),
        )
        return attention + mlp

    @property
    def norm_size(self) -> int:
        """Parameters of the norm after the last layer."""
        return self.counted_norm or self.hidden_size

    @property
    def inner_products(self) -> int:
        """What an MLP makes for each of its inner columns: two halves and their product, or one and its activation."""
        return 3 if self.gated else 2

    @property
    def num_parameters(self) -> int:
        """All parameters of the model, without padding of the vocabulary."""
        return self._parameters_with(self.num_experts)

    @property
    def num_active_parameters(self) -> int:
        """Those that a token passes through: all but the experts that it does not go to."""
        return self._parameters_with(self.moe_router_topk)

    def _parameters_with(self, num_experts: int) -> int:
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tied else 2)
        layers = sum(layer.divided + layer.copied + num_experts * layer.expert for layer in self.layers)
        return layers + vocabulary + self.norm_size


# From the models' config.json on the Hugging Face Hub. The tests compare the number of parameters with the weights'.
PRESETS = {
    "llama-3-8b": ModelShape(32, 4096, 14336, 32, 8, 128_256, 128, 8192),
    "llama-3-70b": ModelShape(80, 8192, 28672, 64, 8, 128_256, 128, 8192),
    "qwen2-7b": ModelShape(28, 3584, 18944, 28, 4, 152_064, 128, 131_072, qkv_bias=True),
    "mixtral-8x7b": ModelShape(
        *(32, 4096, 14336, 32, 8, 32_000, 128, 32_768), num_experts=8, moe_ffn_hidden_size=14336, moe_router_topk=2
    ),
    "qwen3-30b-a3b": ModelShape(
        *(48, 2048, 6144, 32, 4, 151_936, 128, 40_960),
        qk_layernorm=True,
        num_experts=128,
        moe_ffn_hidden_size=768,
        moe_router_topk=8,
    ),
}


def model_shape(hf_model: str) -> ModelShape:
    """The sizes of a model by a preset's name (upper or lower case, with or without ``meta-``) or a local folder.

    Raises:
        CheckpointError: a folder without config.json.
        ConfigError: no such folder or preset, or an architecture that is not supported.
    """
    name = hf_model.lower().split("/")[-1].removeprefix("meta-")
    if name in PRESETS and not Path(hf_model).is_dir():
        return PRESETS[name]
    if not Path(hf_model).is_dir():
        raise ConfigError(f"--hf-model {hf_model} is neither a folder on this machine nor one of {', '.join(PRESETS)}")
    return _shape_of_folder(hf_model)


def _shape_of_folder(folder: str) -> ModelShape:
    from megatron_mixcpt.conversion.hf_model_folder import read_config  # imports torch, which a preset does not need

    plan = read_config(folder)
    arguments = plan.engine_arguments
    sizes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "vocab_size")
    experts = {}
    if arguments["num_experts"]:
        experts = {name: arguments[name] for name in ("num_experts", "moe_router_topk")}
        experts["moe_ffn_hidden_size"] = arguments.get("moe_ffn_hidden_size") or arguments["ffn_hidden_size"]
    return ModelShape(
        **{name: arguments[name] for name in (*sizes, "kv_channels", "max_position_embeddings", "qk_layernorm")},
        tied=plan.tied,
        qkv_bias=arguments["add_qkv_bias"],
        gated=arguments["swiglu"],
        counted_layers=count_layers(plan),
        counted_norm=count_norm(plan),
        **experts,
    )
