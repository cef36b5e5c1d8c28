"""Tiny random Hugging Face models for conversion tests, one per architecture, saved as transformers saves them.

Every one-dimensional parameter (norms, biases) is perturbed: at their initial ones and zeros a mix-up would not show.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

SIZES = {
    "vocab_size": 259,  # odd: padded for any tensor-parallel size above 1
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
SMALL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # some defaults lie outside a tiny vocabulary
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **UNTIED),
    "llama3_tied": LlamaConfig(**SIZES, **TIED, rope_parameters=LLAMA3_ROPE),
    "llama_biases": LlamaConfig(**SIZES, **UNTIED, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SIZES, **UNTIED, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES, **UNTIED),
    "qwen2_tied": Qwen2Config(**SIZES, **TIED),
    "qwen3": Qwen3Config(**SIZES, **UNTIED, head_dim=16),
    "qwen3_tied_bias": Qwen3Config(**SIZES, **TIED, head_dim=16, attention_bias=True),
    "smollm3_tied": SmolLM3Config(**SIZES, **TIED, **SMALL_IDS),
    "smollm3_biases": SmolLM3Config(**SIZES, **TIED, **SMALL_IDS, attention_bias=True, mlp_bias=True),
    "phi3": Phi3Config(**SIZES, **UNTIED, **SMALL_IDS),
    "mixtral": MixtralConfig(**SIZES, **UNTIED, **MOE),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **UNTIED, **MOE, head_dim=16, moe_intermediate_size=24, norm_topk_prob=True),
    "qwen3_moe_raw_weights_bias": Qwen3MoeConfig(
        **SIZES, **UNTIED, **MOE, head_dim=16, moe_intermediate_size=24, attention_bias=True
    ),
}
MIXTURES_OF_EXPERTS = ("mixtral", "qwen3_moe", "qwen3_moe_raw_weights_bias")


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model on the CPU."""
    return build_from(CONFIGS[name], seed)


def build_from(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of any configuration, on the CPU."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", seed: int = 0) -> Path:
    """Save a random model of ``dtype`` as ``folder``, in shards of at most ``shard``; returns the folder."""
    build(name, seed).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 256 bytes and three special tokens: 259 ids, as many as the models have rows."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
