"""From ``config.json`` to the engine's arguments, or an error that names the setting the engine cannot express.

This is what decoder families have in common: sizes, norms, rotary embedding, sliding windows. The file of an
architecture adds its keys (``Architecture``). Every value carries its origin in ``config.json``, so that a flag that
contradicts the checkpoint can be refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.architectures.config_types import wrong_value
from megatron_mixcpt.conversion.architectures.rope import RopeRules, rope_of, ropes_by_layer
from megatron_mixcpt.conversion.architectures.rules import Rule
from megatron_mixcpt.conversion.architectures.tensor_names import TensorNames
from megatron_mixcpt.conversion.architectures.windows import WindowRules, layer_types, window_arguments
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.options import ModelOptions, Rope

CONFIG_MAP = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "layernorm_epsilon",
    "vocab_size": "vocab_size",
}

# Arguments that decide what the weights mean, the same for every family here unless an architecture overrides them.
FIXED_ARGUMENTS: dict[str, Any] = {
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "swiglu": True,
    "squared_relu": False,
    "openai_gelu": False,
    "activation_func_clamp_value": None,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "qk_l2_norm": False,
    "group_query_attention": True,
    "attention_output_gate": False,
    "multi_latent_attention": False,
    "softmax_type": "vanilla",
    "window_size": None,
    "window_attn_skip_freq": None,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "no_rope_freq": None,
    "use_rope_scaling": False,
    "apply_residual_connection_post_layernorm": False,
    "use_mup": False,
    "mtp_num_layers": None,
    "moe_shared_expert_intermediate_size": None,
    "experimental_attention_variant": None,
    "linear_attention_freq": None,
    "num_experts": None,
}

# Defaults that a flag may override: they change training, not what the weights mean.
DEFAULT_ARGUMENTS: dict[str, Any] = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "make_vocab_size_divisible_by": 1,
}
QUANTIZATIONS = {
    "quant_method": ("fp8", "mxfp4"),
    "scale_fmt": ("float",),
    "expert_dtype": ("fp8",),
    "activation_scheme": ("dynamic", "static"),
}
"""Keys of ``quantization_config`` and the values that ``tensor_files/quantized.py`` reads, the assumed one first.

Only ``quant_method`` has to be given.
"""
FREE_ARGUMENTS = frozenset(DEFAULT_ARGUMENTS) | {"max_position_embeddings", "moe_router_dtype"}
ROPE_ARGUMENTS = frozenset(
    {
        *("rotary_base", "rotary_percent", "use_rope_scaling", "rope_scaling_factor"),
        *("rotary_scaling_factor", "mscale_all_dim"),
    }
)
"""What the engine's arguments can say of the rotary embedding; all of it is in a model's options."""


@dataclass(frozen=True)
class Architecture:
    """A family of models as data: its config and its tensor names in the engine's terms."""

    name: str
    """Entry of ``architectures`` in config.json."""
    name_map: tuple[Rule, ...]
    """Every engine tensor; ``output_layer.weight`` is dropped where embeddings are tied."""
    biases: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """Rules of the biases that there are where a key of config.json, as ``attention_bias``, is true."""
    config_map: Mapping[str, str] = field(default_factory=dict)
    """Further required keys of config.json and the engine's names for them."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Engine arguments that differ from ``FIXED_ARGUMENTS``."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that must have this value where present, because the engine supports no other."""
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values that transformers assumes for keys that config.json lacks."""
    spellings: Mapping[str, str] = field(default_factory=dict)
    """Older names of keys in config.json, each with the name used here."""
    rope: RopeRules = field(default_factory=RopeRules)
    """Which rotary embeddings transformers has for it."""
    windows: WindowRules | None = None
    """Which layers transformers gives a sliding window; None: it has no windows for this family."""
    ignored_tensors: str = r".*\.rotary_emb\.inv_freq"
    """Pattern of tensors without weights (old checkpoints store the rotary table)."""
    carried_tensors: str | None = None
    """Pattern of tensors that are not trained, and travel from the base model's folder to the export; None: none.

    ``{num_layers}`` in it stands for the number of layers: layers beyond it predict further tokens.
    """
    tower: "TextTower | None" = None
    """The language models that a multimodal model may hold; None: this is a language model."""
    adjust: Callable[["HFConfig"], Mapping[str, Any]] | None = None
    """Gives further arguments, which no table can express; may raise ConfigError."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``ModelOptions`` that are the same in every model of the family."""
    option_map: Mapping[str, str] = field(default_factory=dict)
    """Keys of config.json whose values are options as they stand, and the fields' names; null leaves the default."""
    adjust_options: Callable[["HFConfig"], Mapping[str, Any]] | None = None
    """Gives further options, which no table can express; may raise ConfigError."""
    rules_of_layer: Callable[["HFConfig", int], tuple[Rule, ...]] | None = None
    """Rules of one layer, by its number from 0, beside those of ``name_map``: for models whose layers differ."""
    models: str = ""
    """Published models, for the table in the documentation."""
    refused: str = ""
    """Settings of config.json that are refused beyond those of every family, for the same table."""


@dataclass(frozen=True)
class TextTower:
    """The language models that a multimodal model may hold."""

    texts: Mapping[str, Architecture]
    """By the ``model_type`` of ``text_config``."""
    names: tuple[TensorNames, ...]
    """How files may name the tensors; the first one is what config.json alone is taken to mean."""


@dataclass(frozen=True)
class Setting:
    """An engine argument's value and where it comes from, as "key value" of config.json."""

    value: Any
    origin: str


class HFConfig:
    """``config.json`` with errors that name the file."""

    def __init__(self, path: Path, values: Mapping[str, Any], architecture: "Architecture") -> None:
        self.path = path
        self._prefix = "text_config." if architecture.tower else ""
        spelled = {architecture.spellings.get(key, key): value for key, value in values.items()}
        found = {**architecture.hf_defaults, **spelled}  # a null in the place of a default: there is none
        self.values = {key: value for key, value in found.items() if value is not None}

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or ``default`` where the key is absent or null."""
        return self.values.get(key, default)

    def require(self, key: str) -> Any:
        """The value; raises :class:`ConfigError` where the key is absent or null."""
        if key not in self.values:
            raise ConfigError(f"{self.path} has no {self._prefix}{key}: the model cannot be built without it")
        return self.values[key]

    def refuse(self, key: str, value: Any, reason: str) -> ConfigError:
        """The error for a setting that the engine cannot express."""
        return ConfigError(f"{self.path}: {self._prefix}{key} {_shown(value)} cannot be trained: {reason}")


def _shown(value: Any, limit: int = 80) -> str:
    """The value as Python writes it, cut where it is long."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def engine_settings(config: HFConfig, architecture: Architecture) -> dict[str, Setting]:
    """Every engine argument that the checkpoint decides, by the engine's name.

    Raises ConfigError for a value that is invalid, or that the engine cannot express.
    """
    if wrong := wrong_value(config.values):
        raise config.refuse(*wrong)
    for key, expected in architecture.required.items():
        if config.get(key, expected) != expected:
            raise config.refuse(key, config.get(key), f"for {architecture.name} the engine only has {key} {expected!r}")
    _check_quantization(config)
    nature = f'"architectures": ["{architecture.name}"]'
    fixed = {**FIXED_ARGUMENTS, **architecture.arguments}
    settings = {name: Setting(value, nature) for name, value in {**fixed, **DEFAULT_ARGUMENTS}.items()}
    for key, name in {**CONFIG_MAP, **architecture.config_map}.items():
        settings[name] = Setting(config.require(key), f"{key} {config.require(key)}")
    settings |= _attention_settings(config) | _rope_settings(_rope(config, architecture))
    settings |= _window_settings(config, architecture)
    if biased := _bias_key(config, architecture, "linear_qkv"):
        settings["add_qkv_bias"] = Setting(True, f"{biased} True")
    tied = config.get("tie_word_embeddings", False)
    settings["untie_embeddings_and_output_weights"] = Setting(not tied, f"tie_word_embeddings {tied}")
    extra = architecture.adjust(config) if architecture.adjust else {}
    return settings | {name: Setting(value, nature) for name, value in extra.items()}


def _check_quantization(config: HFConfig) -> None:
    """Raise ConfigError for quantized weights that cannot be read as transformers reads them."""
    if not (given := config.get("quantization_config")):
        return
    for key, known in QUANTIZATIONS.items():
        value = given.get(key, None if key == "quant_method" else known[0])
        if value not in known:
            reason = f"weights can be read with {' or '.join(known)}: use the full-precision checkpoint"
            raise config.refuse(f"quantization_config.{key}", value, reason)


def _attention_settings(config: HFConfig) -> dict[str, Setting]:
    heads = config.require("num_attention_heads")
    groups = config.get("num_key_value_heads", heads)
    channels = config.get("head_dim", config.require("hidden_size") // heads)
    if heads % groups:
        raise config.refuse("num_key_value_heads", groups, f"it must divide num_attention_heads {heads}")
    return {
        "num_query_groups": Setting(groups, f"num_key_value_heads {groups}"),
        "kv_channels": Setting(channels, f"head_dim {channels}"),
    }


def _window_settings(config: HFConfig, architecture: Architecture) -> dict[str, Setting]:
    keys = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    origin = ", ".join(f"{key} {_shown(config.get(key))}" for key in keys if config.get(key) is not None)
    arguments = window_arguments(config.values, architecture.windows, config.refuse)
    return {name: Setting(value, origin or "no sliding_window") for name, value in arguments.items()}


def model_options(config: HFConfig, architecture: Architecture) -> ModelOptions:
    """What the checkpoint decides beyond the engine's own arguments.

    Raises ConfigError for what transformers cannot compute; the types of the values must have been checked.
    """
    mapped = {name: config.get(key) for key, name in architecture.option_map.items() if config.get(key) is not None}
    adjusted = architecture.adjust_options(config) if architecture.adjust_options else {}
    common = {
        "rope": _rope(config, architecture),
        "layer_ropes": _layer_ropes(config, architecture),
        "attention_output_bias": _bias_key(config, architecture, "linear_proj") is not None,
        "mlp_bias": _bias_key(config, architecture, "linear_fc2") is not None,
    }
    return ModelOptions(**{**common, **architecture.options, **mapped, **adjusted})


def bias_rules(config: HFConfig, architecture: Architecture) -> dict[str, tuple[Rule, ...]]:
    """Rules of the biases that the model has, by the key of config.json that says so."""
    return {key: rules for key, rules in architecture.biases.items() if config.get(key, False)}


def _bias_key(config: HFConfig, architecture: Architecture, layer: str) -> str | None:
    """The key that gives a kind of linear layer, by the engine's name, a bias; None where nothing does."""
    given = bias_rules(config, architecture)
    return next((key for key, rules in given.items() if any(f".{layer}.bias" in rule.engine for rule in rules)), None)


def _rope(config: HFConfig, architecture: Architecture) -> Rope:
    head_dim = _attention_settings(config)["kv_channels"].value
    return rope_of(config.values, architecture.rope, head_dim, config.refuse)


def _layer_ropes(config: HFConfig, architecture: Architecture) -> tuple[Rope, ...]:
    """Those of each layer; none where they are all the same."""
    types, head_dim = layer_types(config.values, architecture.windows), _attention_settings(config)["kv_channels"].value
    ropes = ropes_by_layer(config.values, architecture.rope, types, head_dim, config.refuse)
    common = _rope(config, architecture)
    return ropes if any(rope != common for rope in ropes) else ()


def _rope_settings(rope: Rope) -> dict[str, Setting]:
    """The engine's own arguments of the rotary embedding, as far as they go.

    Our models take their tables from the options (``models/rotary.py``); these say the same to the engine's own tools
    and in checkpoints where the engine can express it.
    """
    theta = rope.parameters["rope_theta"]
    base = int(theta) if theta == int(theta) else theta
    partial = rope.parameters["partial_rotary_factor"] if rope.num_channels < rope.head_dim else 1.0
    settings = {
        "rotary_base": Setting(base, f"rope_theta {theta}"),
        "rotary_percent": Setting(float(partial), f"partial_rotary_factor {partial}"),
    }
    if rope.kind == "dynamic":
        longest = int(rope.max_position_embeddings * rope.parameters["factor"])
        origin = f"max_position_embeddings {rope.max_position_embeddings} times the factor of rope_type dynamic"
        settings["max_position_embeddings"] = Setting(longest, origin)
    if rope.is_engine_llama3:
        factor = float(rope.parameters["factor"])
        settings["use_rope_scaling"] = Setting(True, "rope_type llama3")
        settings["rope_scaling_factor"] = Setting(factor, f"rope scaling factor {factor}")
    return settings
