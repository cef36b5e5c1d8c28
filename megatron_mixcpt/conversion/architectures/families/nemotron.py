"""Nemotron and Minitron: LayerNorm around one, squared ReLU without gate, and half of the channels rotating."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS
from megatron_mixcpt.conversion.architectures.norm_rules import layer_norms
from megatron_mixcpt.conversion.architectures.plain_mlp import plain_mlp, plain_mlp_bias
from megatron_mixcpt.conversion.architectures.rope import RopeRules

NEMOTRON = Architecture(
    name="NemotronForCausalLM",
    name_map=layer_norms(EMBEDDINGS + ATTENTION + plain_mlp("up_proj", "down_proj")),
    biases={"attention_bias": ATTENTION_BIAS, "mlp_bias": plain_mlp_bias("up_proj", "down_proj")},
    arguments={"normalization": "LayerNorm", "layernorm_zero_centered_gamma": True, "swiglu": False},
    options={"activation": "relu2"},
    required={"hidden_act": "relu2"},
    hf_defaults={"partial_rotary_factor": 0.5},
    spellings={"norm_eps": "rms_norm_eps"},
    rope=RopeRules(rotates_partly=True),
    models="Nemotron-4 and Minitron 4B to 340B",
)
