"""Command-R, -R7B and -A: attention and MLP side by side, LayerNorm without bias, channels that rotate in pairs.

Cohere 2 has windows in three layers of four, and a rotary embedding in those alone.
"""

from dataclasses import replace

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.norm_rules import without_norms
from megatron_mixcpt.conversion.architectures.windows import SLIDING, WindowRules, by_pattern, layer_types

COHERE = Architecture(
    name="CohereForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + without_norms(MLP),
    biases={"attention_bias": ATTENTION_BIAS},
    arguments={"normalization": "LayerNorm", "rotary_interleaved": True},
    options={"norm_bias": False, "parallel_layers": True},
    option_map={"logit_scale": "logit_multiplier"},
    required={"hidden_act": "silu", "use_qk_norm": False},
    hf_defaults={"tie_word_embeddings": True, "rope_theta": 5e5, "logit_scale": 0.0625},
    spellings={"layer_norm_eps": "rms_norm_eps"},
    models="Command-R",
    refused="norms of queries and keys (Command-R+)",
)


WINDOWS = WindowRules(by_pattern, has_layer_types=True)


def layers_without_rope(config: HFConfig) -> dict[str, list[int]]:
    """Those without a window, marked with 1."""
    has_windows = config.get("sliding_window") is not None
    return {
        "no_rope_freq": [int(not (has_windows and kind == SLIDING)) for kind in layer_types(config.values, WINDOWS)]
    }


COHERE2 = replace(
    COHERE,
    name="Cohere2ForCausalLM",
    required={"hidden_act": "silu"},
    hf_defaults={
        **{"tie_word_embeddings": True, "logit_scale": 0.0625, "max_position_embeddings": 8192},
        **{"sliding_window": 4096, "sliding_window_pattern": 4},
    },
    windows=WINDOWS,
    adjust=layers_without_rope,
    models="Command-R7B, Command-A",
    refused="",
)
