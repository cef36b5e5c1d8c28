"""One product for all experts against a loop in float64, and where torch's grouped product is taken."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from megatron_mixcpt.models import grouped_linear as module
from megatron_mixcpt.models.grouped_linear import grouped_linear, takes_grouped_mm

# float32: sums of at most 32 products of order one, in another order. bfloat16: inputs and results have 8 bits.
TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 2**-6, "atol": 2**-6}}
COUNTS = {"some without tokens": [5, 0, 7, 1, 0], "one expert": [6], "no tokens at all": [0, 0, 0]}


def tensors(counts: list[int], num_in: int, num_out: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights and what the result is multiplied by to make a loss."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(sum(counts), num_in), (len(counts), num_out, num_in), (sum(counts), num_out)]
    rows, weight, factor = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return rows.requires_grad_(), weight.mul_(num_in**-0.5).requires_grad_(), factor


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_in", [32, 6])  # rows of 6 numbers are not aligned to 16 bytes: torch has no product
def test_values_and_gradients_are_a_loop_s(counts: list[int], dtype: torch.dtype, num_in: int) -> None:
    rows, weight, factor = tensors(counts, num_in, 24, dtype)
    assert takes_grouped_mm(rows, weight) == (num_in == 32 and sum(counts) > 0)
    result = grouped_linear(rows, weight, counts)
    grads = torch.autograd.grad((result * factor).sum(), (rows, weight))

    expected = torch.cat([x @ w.T for x, w in zip(rows.double().split(counts), weight.double(), strict=True)])
    expected_grads = torch.autograd.grad((expected * factor.double()).sum(), (rows, weight))
    torch.testing.assert_close(result, expected.to(dtype), **TOLERANCE[dtype])
    torch.testing.assert_close(grads, expected_grads, **TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("dtype", "capability", "hip", "is_taken"),
    [
        (torch.bfloat16, (9, 0), None, True),
        (torch.float32, (9, 0), None, False),  # torch would copy the group sizes to the host, and wait
        (torch.bfloat16, (8, 0), None, False),
        (torch.bfloat16, (10, 0), None, False),  # wrong gradients of experts without tokens
        (torch.bfloat16, (9, 4), "6.4", False),
    ],
)
def test_on_gpus_torch_s_product_is_taken_where_it_is_exact_and_does_not_wait(
    dtype: torch.dtype, capability: tuple[int, int], hip: str | None, is_taken: bool
) -> None:
    def on_gpu(shape: tuple[int, ...], address: int = 4096) -> SimpleNamespace:
        return SimpleNamespace(
            shape=shape,
            dtype=dtype,
            device=torch.device("cuda"),
            size=lambda axis: shape[axis],
            element_size=lambda: dtype.itemsize,
            data_ptr=lambda: address,
        )

    with (
        patch.object(torch.cuda, "get_device_capability", lambda device: capability),
        patch.object(torch.version, "hip", hip),
    ):
        assert takes_grouped_mm(on_gpu((4, 32)), on_gpu((2, 24, 32))) is is_taken  # type: ignore[arg-type]
        assert not takes_grouped_mm(on_gpu((4, 32), address=4098), on_gpu((2, 24, 32)))  # type: ignore[arg-type]


def test_group_sizes_reach_a_gpu_from_page_locked_memory() -> None:
    """A copy from other memory is waited for."""
    made = []

    def tensor(values: list[int], **options: object) -> SimpleNamespace:
        return SimpleNamespace(to=lambda *args, **kwargs: made.append((values, options, args, kwargs)))

    with patch.object(module.torch, "tensor", tensor):
        module._last_rows([2, 0, 3], torch.device("cuda", 1))
    ((ends, options, (device,), copy),) = made
    assert ends == [2, 2, 5] and options["pin_memory"] and copy == {"non_blocking": True}
    assert device == torch.device("cuda", 1) and options["dtype"] == torch.int32
