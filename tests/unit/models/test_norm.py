"""Our norms against transformers' and PyTorch's, and their mark for the gradient reduction."""

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.testing import run_distributed


def test_norms() -> None:
    run_distributed(check_norms, 1, cpu_emulation=True)


def check_norms() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for zero_centered in (False, True):
            check_rms_norm_is_transformers(dtype, zero_centered)
            check_layer_norm_is_the_formula(dtype, zero_centered)
    check_weights_are_marked_for_sequence_parallelism()
    check_what_is_not_supported_is_refused()


def config(**overrides):
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape = {"num_layers": 2, "hidden_size": 96, "num_attention_heads": 4}
    return TransformerConfig(**shape | {"normalization": "RMSNorm"} | overrides)


def random_inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(7, 3, 96, generator=generator) * torch.tensor([1e-3, 1.0, 50.0]).view(3, 1)
    return x.to(dtype), torch.randn(96, generator=generator).to(dtype)


def check_rms_norm_is_transformers(dtype: torch.dtype, zero_centered: bool) -> None:
    """Equal where rounding is the same: in bfloat16 to the last bit but for the float32 sum's order of terms."""
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from megatron_mixcpt.models.norm import build_norm

    x, weight = random_inputs(dtype)
    norm = build_norm(config=config(layernorm_zero_centered_gamma=zero_centered), hidden_size=96, eps=1e-5).to(dtype)
    reference = (GemmaRMSNorm if zero_centered else LlamaRMSNorm)(96, 1e-5).to(dtype)
    torch.testing.assert_close(norm.weight, reference.weight, rtol=0, atol=0)
    results = []
    for module in (norm, reference):
        module.weight.data.copy_(weight)
        given = x.clone().requires_grad_()
        module(given).square().sum().backward()
        results.append((module(x), given.grad, module.weight.grad))
    # float32: a few units in the last place. bfloat16: the value must not be rounded differently at all, the gradients
    # pass through one more rounding (2^-8 relative).
    value_tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0}
    grad_tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 0.5}
    torch.testing.assert_close(results[0][0], results[1][0], **value_tolerance)
    torch.testing.assert_close(results[0][1:], results[1][1:], **grad_tolerance)


def check_layer_norm_is_the_formula(dtype: torch.dtype, zero_centered: bool) -> None:
    """Nemotron's where the weight is zero-centred, which rounds one plus the weight to the weight's dtype."""
    from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

    from megatron_mixcpt.models.norm import build_norm

    x, weight = random_inputs(dtype)
    overrides = {"normalization": "LayerNorm", "layernorm_zero_centered_gamma": zero_centered}
    norm = build_norm(config=config(**overrides), hidden_size=96, eps=1e-5).to(dtype)
    torch.testing.assert_close(norm.weight, torch.full_like(norm.weight, 0.0 if zero_centered else 1.0))
    norm.weight.data.copy_(weight)
    norm.bias.data.copy_(weight.flip(0))
    if zero_centered:
        reference = NemotronLayerNorm1P(96, 1e-5).to(dtype)
        reference.load_state_dict(norm.state_dict())
        torch.testing.assert_close(norm(x), reference(x), rtol=0, atol=0)
    elif dtype == torch.float32:
        expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        torch.testing.assert_close(norm(x), expected * weight + weight.flip(0), rtol=1e-5, atol=1e-5)


def check_weights_are_marked_for_sequence_parallelism() -> None:
    from megatron_mixcpt.models.norm import build_norm

    for parallel in (True, False):
        sizes = {"sequence_parallel": parallel, "tensor_model_parallel_size": 2}
        norm = build_norm(config=config(normalization="LayerNorm", **sizes), hidden_size=96)
        assert [parameter.sequence_parallel for parameter in norm.parameters()] == [parallel, parallel]


def check_what_is_not_supported_is_refused() -> None:
    from megatron_mixcpt.errors import ConfigError
    from megatron_mixcpt.models.norm import build_norm

    with pytest.raises(ConfigError, match="--normalization L2Norm is not one of RMSNorm, LayerNorm"):
        build_norm(config=config(normalization="L2Norm"), hidden_size=96)
