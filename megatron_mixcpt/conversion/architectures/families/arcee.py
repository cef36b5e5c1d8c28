"""Arcee's foundation models: Llama's layers with squared ReLU and no gate."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS
from megatron_mixcpt.conversion.architectures.plain_mlp import plain_mlp, plain_mlp_bias

ARCEE = Architecture(
    name="ArceeForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + plain_mlp("up_proj", "down_proj"),
    biases={"attention_bias": ATTENTION_BIAS, "mlp_bias": plain_mlp_bias("up_proj", "down_proj")},
    arguments={"swiglu": False},
    options={"activation": "relu2"},
    required={"hidden_act": "relu2"},
    models="AFM 4.5B",
)
