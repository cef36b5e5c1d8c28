"""Tiny random Hugging Face models for conversion tests, one per architecture, saved as transformers saves them.

Every one-dimensional parameter (norms, biases) is perturbed: at their initial ones and zeros a mix-up would not show.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config

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

CONFIGS = {
    "llama3_tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False, sliding_window=None),
    "qwen2_tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True, sliding_window=None),
}
ARCHITECTURE_OF = {
    "llama3_tied": "LlamaForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_tied": "Qwen2ForCausalLM",
}


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """A random float32 model on the CPU."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(name: str, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB", seed: int = 0) -> Path:
    """Save a random model of ``dtype`` as ``folder``, in shards of at most ``shard``; returns the folder."""
    build(name, seed).to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder
