"""Layers in host memory compute what layers on the device do, with two of them there at a time."""

import pytest
import torch

from megatron_mixcpt.testing import run_distributed


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_layers_compute_the_same(num_layers: int) -> None:
    run_distributed(check_layers, 1, num_layers, cpu_emulation=True)


def check_layers(num_layers: int) -> None:
    from megatron_mixcpt.distillation.offload import OffloadedLayers

    torch.manual_seed(0)
    # Of different sizes, none a multiple of the alignment.
    layers = [torch.nn.Sequential(torch.nn.Linear(7, 11 + i), torch.nn.Linear(11 + i, 7)) for i in range(num_layers)]
    expected = run(layers, torch.ones(3, 7))
    offloaded = OffloadedLayers(layers, torch.device("cpu"))
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


def run(layers: list[torch.nn.Module], hidden_states: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for layer in layers:
            hidden_states = layer(hidden_states)
    return hidden_states
