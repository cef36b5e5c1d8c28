"""Qwen2 and Qwen2.5: Llama's layers with a bias on query, key and value."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP, QKV_BIAS
from megatron_mixcpt.conversion.architectures.windows import WindowRules, last_layers

QWEN2 = Architecture(
    name="Qwen2ForCausalLM",
    models="Qwen2, Qwen2.5",
    name_map=EMBEDDINGS + ATTENTION + QKV_BIAS + MLP,
    arguments={"add_qkv_bias": True},
    required={"hidden_act": "silu"},
    hf_defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    windows=WindowRules(last_layers, has_layer_types=True),
)
