"""Mistral (without an active sliding window) and the models that share its architecture: Llama's layers."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP

MISTRAL = Architecture(
    name="MistralForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    required={"hidden_act": "silu"},
)
