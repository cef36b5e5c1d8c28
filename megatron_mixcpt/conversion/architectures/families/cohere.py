"""Command-R: attention and MLP side by side, LayerNorm without bias, and channels that rotate in neighbouring pairs."""

from megatron_mixcpt.conversion.architectures.hf_config import Architecture
from megatron_mixcpt.conversion.architectures.llama import ATTENTION, ATTENTION_BIAS, EMBEDDINGS, MLP
from megatron_mixcpt.conversion.architectures.norm_rules import PRE_NORMS

COHERE = Architecture(
    name="CohereForCausalLM",
    name_map=EMBEDDINGS + ATTENTION + tuple(rule for rule in MLP if rule.engine not in PRE_NORMS),
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
