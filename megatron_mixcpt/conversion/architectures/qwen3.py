"""Qwen3: Llama's layers with a norm on each query and key head, and a head size that is set separately."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, ENGINE, HF, MLP
from megatron_mixcpt.conversion.architectures.rules import Rename, Rule
from megatron_mixcpt.conversion.architectures.windows import WindowRules, last_layers

QK_NORM: tuple[Rule, ...] = (
    Rename(ENGINE + "self_attention.q_layernorm.weight", HF + "self_attn.q_norm.weight", ("head",)),
    Rename(ENGINE + "self_attention.k_layernorm.weight", HF + "self_attn.k_norm.weight", ("head",)),
)

QWEN3 = Architecture(
    name="Qwen3ForCausalLM",
    models="Qwen3",
    name_map=EMBEDDINGS + ATTENTION + QK_NORM + MLP,
    arguments={"qk_layernorm": True},
    biases={"attention_bias": ATTENTION_BIAS},
    required={"hidden_act": "silu"},
    hf_defaults={"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    windows=WindowRules(last_layers, has_layer_types=True),
)
