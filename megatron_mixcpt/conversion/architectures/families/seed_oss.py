"""Seed-OSS: Llama's layers with biases of query, key and value."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import (
    ATTENTION,
    EMBEDDINGS,
    MLP,
    MLP_BIAS,
    OUTPUT_BIAS,
    QKV_BIAS,
)

SEED_OSS = Architecture(
    name="SeedOssForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    biases={"attention_bias": QKV_BIAS, "attention_out_bias": OUTPUT_BIAS, "mlp_bias": MLP_BIAS},
    required={"hidden_act": "silu"},
    hf_defaults={"head_dim": 128, "num_key_value_heads": 8, "attention_bias": True},
    models="Seed-OSS 36B",
)
