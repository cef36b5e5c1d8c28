"""SmolLM3: Llama's layers, some of them (every fourth) without rotary embedding."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture, HFConfig
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP, MLP_BIAS
from megatron_mixcpt.conversion.architectures.windows import Values, WindowRules


def layers_without_rope(config: HFConfig) -> dict[str, list[int]]:
    """The engine marks the layers that skip the embedding with 1, the checkpoint with 0."""
    return {"no_rope_freq": [1 - uses_rope for uses_rope in config.require("no_rope_layers")]}


def layers_with_window(values: Values) -> list[bool]:
    """Those without rotary embedding."""
    return [not uses_rope for uses_rope in values.get("no_rope_layers", [])]


SMOLLM3 = Architecture(
    name="SmolLM3ForCausalLM",
    models="SmolLM3",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    biases={"attention_bias": ATTENTION_BIAS, "mlp_bias": MLP_BIAS},
    required={"hidden_act": "silu"},
    hf_defaults={"use_sliding_window": False, "tie_word_embeddings": True, "rope_theta": 2e6},
    windows=WindowRules(layers_with_window, has_layer_types=True),
    adjust=layers_without_rope,
)
