"""The gated delta rule in chunks beside its recurrence, token by token as in the paper, and beside transformers."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from megatron_mixcpt.models.delta_net.delta_rule import CHUNK, gated_delta_rule

LENGTH = 2 * CHUNK + 22
# Documents that end within a chunk, with one, and one token after another; and one that is longer than a chunk.
STARTS = torch.tensor([0, 5, 6, CHUNK, CHUNK + 30, 2 * CHUNK + 10])


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Two sequences; two heads of keys, each for two heads of values; strong and weak decays."""
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(2, LENGTH, *sizes, generator=generator)

    tensors = {"query": random(2, 6), "key": random(2, 6), "value": random(4, 5), "decay": -random(4).square()}
    return {name: tensor.requires_grad_() for name, tensor in (tensors | {"beta": random(4).sigmoid()}).items()}


def starts_of_tokens() -> Tensor:
    """int64 [2, s]; the second sequence is one document."""
    tokens = torch.arange(LENGTH)
    first = STARTS[torch.searchsorted(STARTS, tokens, right=True) - 1]
    return torch.stack([first, torch.zeros_like(tokens)])


def expected_outputs(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, starts: Tensor | None
) -> Tensor:
    """The paper's equation 10, in float64; a token that starts a document finds a state of 0."""
    query, key = (tensor.double().repeat_interleave(2, dim=2) for tensor in (query, key))
    query, key = (tensor / (tensor.square().sum(-1, keepdim=True) + 1e-6).sqrt() for tensor in (query, key))
    value, decay, beta = (tensor.double() for tensor in (value, decay, beta))
    state, outputs = torch.zeros(2, 4, value.shape[-1], key.shape[-1], dtype=torch.float64), []
    for token in range(LENGTH):
        if starts is not None:
            state = state * (starts[:, token] != token).view(-1, 1, 1, 1)
        k, v = key[:, token], value[:, token]
        state = decay[:, token, :, None, None].exp() * state
        seen = torch.einsum("bhvk,bhk->bhv", state, k)
        state = state + torch.einsum("bhv,bhk->bhvk", beta[:, token, :, None] * (v - seen), k)
        outputs.append(torch.einsum("bhvk,bhk->bhv", state, query[:, token]) / key.shape[-1] ** 0.5)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("starts", [None, starts_of_tokens()], ids=["one document", "documents"])
def test_outputs_and_gradients_are_those_of_the_recurrence(inputs: dict[str, Tensor], starts: Tensor | None) -> None:
    weights = torch.randn(2, LENGTH, 4, 5, generator=torch.Generator().manual_seed(1))
    outputs, expected = gated_delta_rule(**inputs, starts=starts), expected_outputs(**inputs, starts=starts)
    # float32 in another order of sums, of values up to 1
    torch.testing.assert_close(outputs.double(), expected, rtol=0, atol=2e-6)
    gradients = torch.autograd.grad((outputs * weights).sum(), list(inputs.values()))
    expected_gradients = torch.autograd.grad((expected * weights).sum(), list(inputs.values()))
    for name, gradient, expected_gradient in zip(inputs, gradients, expected_gradients, strict=True):
        difference = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
        assert difference < 1e-5, name


def test_it_is_transformers_function(inputs: dict[str, Tensor]) -> None:
    names = {"decay": "g"}
    given = {names.get(name, name): tensor for name, tensor in inputs.items()}
    expected, _ = torch_chunk_gated_delta_rule(**given, use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(gated_delta_rule(**inputs), expected, rtol=0, atol=2e-6)


def test_outputs_have_the_dtype_of_the_values(inputs: dict[str, Tensor]) -> None:
    halves = {name: tensor if name == "decay" else tensor.bfloat16() for name, tensor in inputs.items()}
    expected = gated_delta_rule(**{name: tensor.float() for name, tensor in halves.items()})
    torch.testing.assert_close(gated_delta_rule(**halves), expected.bfloat16(), rtol=0, atol=0)
