"""Keeps a frozen stage's layers in host memory and brings each to the device while the layer before it runs.

On the host all layers lie in one block. The device holds two buffers of the largest layer's size, whatever the number
of layers. A copy stream fills one while the layer in the other computes; each waits for the other by events, never the
host for the device. The embedding and the output weight, which the losses read outside the layers, stay on the device.

A layer's copy and its products both grow with its weights, so that only the tokens decide which takes longer: a copy at
50 GB/s brings a bfloat16 weight in 40 ps, in which an H100 at 544 TFLOP/s multiplies it with 10,900 tokens.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_mixcpt.errors import ConfigError

# Alignment of parameters in bytes, as matrix kernels prefer it.
_ALIGNMENT = 256
# cudaHostRegisterPortable: page-locked for every device of the process.
_PORTABLE = 1


def _page_locked(num_bytes: int) -> Tensor:
    """Host memory that the device copies from by itself, uint8 [num_bytes].

    Memory is made as usual and locked where it lies, for PyTorch's own allocator of pinned memory rounds each tensor
    up to a power of two: of the layers of an 8B model, 14.0 GB, it makes 17.2.

    Raises:
        ConfigError: the system does not lock as much.
    """
    memory = torch.empty(num_bytes, dtype=torch.uint8, device="cpu")
    error = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), num_bytes, _PORTABLE)) if num_bytes else 0
    if error:
        raise ConfigError(
            f"--teacher-offload cpu: {num_bytes / 2**30:.1f} GiB of host memory could not be page-locked (CUDA error "
            f"{error}): free host memory, start fewer ranks on this host, or remove the flag"
        )
    return memory


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class _HostLayer:
    """A layer's parameters one after the other in page-locked host memory."""

    parameters: list[torch.nn.Parameter]
    starts: list[int]
    memory: Tensor
    """uint8 [bytes]."""

    @classmethod
    def of(cls, layer: torch.nn.Module, block: Tensor, start: int) -> "_HostLayer":
        """Move a layer's parameters into ``block``, uint8, from ``start`` on; their ``data`` is changed in place."""
        parameters = list(layer.parameters())
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += _aligned(parameter.nbytes)
        host = cls(parameters, starts, block[start : start + end])
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


def _moved_to_host(layers: Sequence[torch.nn.Module]) -> list[_HostLayer]:
    """All layers in one block, in place."""
    sizes = [sum(_aligned(parameter.nbytes) for parameter in layer.parameters()) for layer in layers]
    block = _page_locked(sum(sizes))
    starts = itertools.accumulate(sizes, initial=0)
    return [_HostLayer.of(layer, block, start) for layer, start in zip(layers, starts, strict=False)]


class OffloadedLayers:
    """Hooks on layers that run one after the other, without gradients, any number of times.

    Except while a layer runs, its parameters are views of host memory: whatever loads weights into them loads them
    there. Building this moves them, in place.

    Args:
        layers: in the order in which they run.
        device: where they run.

    Raises:
        ConfigError: the host memory cannot be page-locked.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], device: torch.device | int) -> None:
        self._layers = _moved_to_host(layers)
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
