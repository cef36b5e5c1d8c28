"""Multiplied embeddings, rounded as Gemma and as Granite round, and the multiplier of scores beside a rotary factor."""

import math
from types import SimpleNamespace

import torch

from megatron_mixcpt.testing import run_distributed


def test_multipliers() -> None:
    run_distributed(check_multipliers, 1, cpu_emulation=True)


def check_multipliers() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for rounds in (True, False):
            check_embeddings(dtype, rounds)
    check_scale_of_scores()


def check_embeddings(dtype: torch.dtype, rounds: bool) -> None:
    """sqrt(3072) is 55.43, and 55.5 in bfloat16: Gemma multiplies by that, Granite's number is not rounded."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    from megatron_mixcpt.models.layer_options.multipliers import multiply_embeddings
    from megatron_mixcpt.models.options import ModelOptions, attach_options

    multiplier, tokens = math.sqrt(3072), torch.arange(20)
    reference = Gemma3TextScaledWordEmbedding(20, 16, 0, multiplier).to(dtype)
    embedding = torch.nn.Embedding(20, 16, dtype=dtype)
    embedding.load_state_dict(reference.state_dict())
    config = SimpleNamespace()
    attach_options(config, ModelOptions(embedding_multiplier=multiplier, rounds_embedding_multiplier=rounds))
    parts = {"embedding": SimpleNamespace(word_embeddings=embedding), "pre_process": True}
    multiply_embeddings(SimpleNamespace(config=config, **parts))
    expected = reference(tokens) if rounds else embedding.weight * multiplier
    assert torch.equal(embedding(tokens), expected)
    assert rounds or dtype == torch.float32 or not torch.equal(expected, reference(tokens))


def check_scale_of_scores() -> None:
    """Yarn's attention factor of 0.1 ln 40 + 1, squared, times the model's own multiplier."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_mixcpt.models.configure import configure_model
    from megatron_mixcpt.models.options import ModelOptions, Rope

    config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=4)
    configure_model(config, ModelOptions(attention_multiplier=0.0156))
    assert config.softmax_scale == 0.0156
    parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 16}
    rope = Rope(parameters, head_dim=16, num_channels=16, max_position_embeddings=640)
    configure_model(config, ModelOptions(rope=rope, attention_multiplier=0.0156))
    assert math.isclose(config.softmax_scale, (0.1 * math.log(40) + 1) ** 2 * 0.0156)
    configure_model(config, ModelOptions())
    assert config.softmax_scale is None
