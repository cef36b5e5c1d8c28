"""Layers in host memory compute what layers on the device do, with two of them there at a time."""

from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from megatron_mixcpt.testing import run_distributed


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_layers_compute_the_same(num_layers: int) -> None:
    run_distributed(check_layers, 1, num_layers, cpu_emulation=True)


def check_layers(num_layers: int) -> None:
    from megatron_mixcpt.distillation.offload import OffloadedLayers

    locked = []

    def note(*address_and_size: int) -> int:
        locked.append(address_and_size)
        return 0

    torch.manual_seed(0)
    # Of different sizes, none a multiple of the alignment.
    layers = [torch.nn.Sequential(torch.nn.Linear(7, 11 + i), torch.nn.Linear(11 + i, 7)) for i in range(num_layers)]
    expected = run(layers, torch.ones(3, 7))
    with patch.object(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=note)):
        offloaded = OffloadedLayers(layers, torch.device("cpu"))
    ((block, num_bytes, _),) = locked
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    # One block for all layers, which holds them and no more than 256 bytes beyond each parameter.
    assert all(block <= p.data_ptr() and p.data_ptr() + p.nbytes <= block + num_bytes for p in parameters)
    assert num_bytes < sum(p.nbytes + 256 for p in parameters)
    host = [parameter.data_ptr() for layer in layers for parameter in layer.parameters()]
    on_device = {buffer.data_ptr() for buffer in offloaded._buffers}
    seen = set()
    for layer in layers:
        layer.register_forward_pre_hook(lambda layer, _: seen.add(next(layer.parameters()).data_ptr()))
    for _ in range(3):
        torch.testing.assert_close(run(layers, torch.ones(3, 7)), expected, rtol=0, atol=0)
    assert seen <= on_device and len(seen) == 2
    assert host == [parameter.data_ptr() for layer in layers for parameter in layer.parameters()]
    # Weights loaded between two passes: all but the first layer, which is on its way already, are read again.
    for parameter in layers[-1].parameters():
        parameter.data.zero_()
    if num_layers > 1:
        assert not run(layers, torch.ones(3, 7)).any()


def test_memory_that_cannot_be_locked_is_refused() -> None:
    run_distributed(check_refusal, 1, cpu_emulation=True)


def check_refusal() -> None:
    from megatron_mixcpt.distillation.offload import OffloadedLayers
    from megatron_mixcpt.errors import ConfigError

    out_of_memory = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    with patch.object(torch.cuda, "cudart", lambda: out_of_memory), pytest.raises(ConfigError, match="CUDA error 2"):
        OffloadedLayers([torch.nn.Linear(2, 2)], torch.device("cpu"))


def run(layers: list[torch.nn.Module], hidden_states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for layer in layers:
            hidden_states = layer(hidden_states)
    return hidden_states
