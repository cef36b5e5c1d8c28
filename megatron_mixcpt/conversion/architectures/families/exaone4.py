"""EXAONE 4: norms after attention and MLP only; beside layers with a window, full attention is without rotation."""

from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.norm_rules import post_norms, without_norms
from megatron_mixcpt.conversion.architectures.qwen3 import QK_NORM
from megatron_mixcpt.conversion.architectures.windows import FULL, Values, WindowRules, all_but_every, layer_types


def layers_with_window(values: Values) -> list[bool]:
    """All but every ``sliding_window_pattern``-th, which may be a text where ``layer_types`` says it."""
    pattern = values.get("sliding_window_pattern")
    return all_but_every(pattern if isinstance(pattern, int) and pattern > 0 else 4)(values)


WINDOWS = WindowRules(layers_with_window, has_layer_types=True)


def layers_without_rope(config: HFConfig) -> dict[str, Any]:
    """The engine marks the layers that skip the embedding with 1; raises ConfigError for a pattern with no layers."""
    pattern, window = config.get("sliding_window_pattern"), config.get("sliding_window")
    if config.get("layer_types") is None and not (window and type(pattern) is int and pattern > 0):
        raise config.refuse("sliding_window_pattern", pattern, "give layer_types, which says it for each layer")
    if window is None:
        return {}
    return {"no_rope_freq": [int(kind == FULL) for kind in layer_types(config.values, WINDOWS)]}


EXAONE4 = Architecture(
    name="Exaone4ForCausalLM",
    name_map=(
        *(*EMBEDDINGS, *without_norms(ATTENTION + MLP), *QK_NORM),
        *post_norms("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    arguments={"qk_layernorm": True},
    options={"pre_norms": False, "post_norms": True},
    required={"hidden_act": "silu", "use_sliding_window": True},
    hf_defaults={"num_key_value_heads": 32, "sliding_window": 4096, "sliding_window_pattern": 4},
    windows=WINDOWS,
    adjust=layers_without_rope,
    models="EXAONE 4.0 1.2B and 32B",
)
