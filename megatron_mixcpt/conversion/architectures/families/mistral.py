"""Mistral and the models that share its architecture: Llama's layers."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.windows import WindowRules, every_layer

MISTRAL = Architecture(
    name="MistralForCausalLM",
    models="Mistral 7B, Nemo, Small 2501",
    name_map=EMBEDDINGS + ATTENTION + MLP,
    required={"hidden_act": "silu"},
    hf_defaults={"sliding_window": 4096},
    windows=WindowRules(every_layer),
)
