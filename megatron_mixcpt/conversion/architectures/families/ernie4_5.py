"""ERNIE 4.5, its dense models: Llama's layers whose channels rotate in neighbouring pairs."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP, MLP_BIAS

ERNIE4_5 = Architecture(
    name="Ernie4_5ForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    biases={"use_bias": ATTENTION_BIAS + MLP_BIAS},
    arguments={"rotary_interleaved": True},
    required={"hidden_act": "silu"},
    hf_defaults={"head_dim": 128, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 5e5},
    models="ERNIE 4.5 0.3B",
)
