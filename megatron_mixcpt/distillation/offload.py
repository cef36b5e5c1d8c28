"""Keeps a frozen stage's layers in host memory and brings each to the device while the layer before it runs.

The device holds two buffers of the largest layer's size, whatever the number of layers. A copy stream fills one while
the layer in the other computes; each waits for the other by events, never the host for the device. The embedding and
the output weight, which the losses read outside the layers, stay on the device.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Alignment of parameters in bytes, as matrix kernels prefer it.
_ALIGNMENT = 256


@dataclass(frozen=True)
class _HostLayer:
    """A layer's parameters one after the other in pinned host memory."""

    parameters: list[torch.nn.Parameter]
    starts: list[int]
    memory: Tensor
    """uint8 [bytes]."""

    @classmethod
    def of(cls, layer: torch.nn.Module) -> "_HostLayer":
        """Move a layer's parameters to host memory; their ``data`` is changed in place."""
        parameters = list(layer.parameters())
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
        host = cls(parameters, starts, torch.empty(end, dtype=torch.uint8, device="cpu", pin_memory=True))
        values = [parameter.data for parameter in parameters]
        host.point_to(host.memory)
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data.copy_(value)
        return host

    def point_to(self, memory: Tensor) -> None:
        """Make the parameters views of ``memory``, uint8 [bytes or more]."""
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            part = memory[start : start + parameter.nbytes]
            parameter.data = part.view(parameter.dtype).view(parameter.shape)


class OffloadedLayers:
    """Hooks on layers that run one after the other, without gradients, any number of times.

    Except while a layer runs, its parameters are views of host memory: whatever loads weights into them loads them
    there. Building this moves them, in place.

    Args:
        layers: in the order in which they run.
        device: where they run.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], device: torch.device | int) -> None:
        self._layers = [_HostLayer.of(layer) for layer in layers]
        size = max((len(layer.memory) for layer in self._layers), default=0)
        self._buffers = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._copies = torch.cuda.Stream()
        self._arrived = [torch.cuda.Event() for _ in self._buffers]
        self._released = [torch.cuda.Event() for _ in self._buffers]
        self._place: dict[int, int] = {}
        self._next_place = 0
        for index, layer in enumerate(layers):
            layer.register_forward_pre_hook(functools.partial(self._enter, index))
            layer.register_forward_hook(functools.partial(self._leave, index))

    def _enter(self, index: int, *_: Any) -> None:
        """Have a layer that is about to run on the device, and start copying the next; the first follows the last."""
        if index not in self._place:
            self._fetch(index)
        place = self._place[index]
        torch.cuda.current_stream().wait_event(self._arrived[place])
        self._layers[index].point_to(self._buffers[place])
        following = (index + 1) % len(self._layers)
        if following not in self._place:
            self._fetch(following)

    def _leave(self, index: int, *_: Any) -> None:
        self._released[self._place.pop(index)].record(torch.cuda.current_stream())
        self._layers[index].point_to(self._layers[index].memory)

    def _fetch(self, index: int) -> None:
        """Copy a layer into the least recently used buffer, as soon as the layer in it has run."""
        place, self._next_place = self._next_place, 1 - self._next_place
        self._place[index] = place
        memory = self._layers[index].memory
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._released[place])
            self._buffers[place][: len(memory)].copy_(memory, non_blocking=True)
            self._arrived[place].record(self._copies)


def offload_layers(model: torch.nn.Module, layers: Sequence[torch.nn.Module], device: torch.device | int) -> None:
    """Keep ``layers`` of a frozen model in host memory and move its other parameters to ``device``; in place."""
    OffloadedLayers(layers, device)
    kept = {id(parameter) for layer in layers for parameter in layer.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(device)
