"""Lets Megatron, which assumes CUDA devices, run on a machine that has none.

`install()` replaces the parts of `torch` that the engine uses and that need a GPU by stand-ins on the CPU: there is one
"CUDA device", number 0, and it is the CPU. Every stand-in is listed with its reason in `EMULATED`; a call of
`torch.cuda` that is not listed and needs a device raises `NotImplementedError` naming it. Only the attributes listed
are replaced: no hook runs on ordinary tensor operations, so a training step costs what it costs.

An entry script calls it at its top level (not under `if __name__ == "__main__"`: the engine's asynchronous checkpoint
writer is a spawned process that imports the script again), before anything of Megatron is imported:

    from megatron_mixcpt import cpu_emulation

    cpu_emulation.install()
"""

import functools
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_CPU = torch.device("cpu")
_installed = False


class Emulated(NamedTuple):
    """One replaced attribute: its dotted name, what stands in for it, and why the engine needs it."""

    name: str
    stand_in: Any
    reason: str


class Stream:
    """A CUDA stream on the CPU: work is done when it is issued, so that there is nothing to order or wait for."""

    device = _CPU
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        pass

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        pass

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Event:
    """A CUDA event on the CPU: it has happened once recorded, and keeps the time of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._recorded_s = time.perf_counter()

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to `end_event`."""
        return (end_event._recorded_s - self._recorded_s) * 1e3

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


_STREAM = Stream()


def _returning(value: Any) -> Callable[..., Any]:
    """A function that takes anything and returns `value`."""
    return lambda *args, **kwargs: value


def _resident_bytes(*args: Any, **kwargs: Any) -> int:
    """The most memory the process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_stats(*args: Any, **kwargs: Any) -> defaultdict[str, int]:
    return defaultdict(int)


def _device_properties(*args: Any, **kwargs: Any) -> SimpleNamespace:
    total_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return SimpleNamespace(
        name="cpu", total_memory=total_memory, major=0, minor=0, multi_processor_count=os.cpu_count()
    )


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_rng_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.default_generator.set_state(new_state)


def _manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _lazy_call(callback: Callable[[], None], **kwargs: Any) -> None:
    callback()


def _lazy_init() -> None:
    """What every call of torch.cuda that needs a device runs first: reached only by one that is not emulated."""
    caller = sys._getframe(1).f_code
    raise NotImplementedError(
        f"{caller.co_name} ({caller.co_filename}) needs a CUDA device and is not among what "
        "megatron_mixcpt.cpu_emulation emulates: add it to EMULATED there"
    )


def _is_cuda(device: Any) -> bool:
    """Whether a `device` argument means a CUDA device (an integer does)."""
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return type(device) is int


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """`factory` with a CUDA `device` turned into the CPU, and without pinned memory (which needs a driver)."""

    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = _CPU
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return on_cpu


_tensor_to = torch.Tensor.to
_tensor_type = torch.Tensor.type


@functools.wraps(_tensor_to)
def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args and _is_cuda(args[0]):
        args = (_CPU, *args[1:])
    elif kwargs and _is_cuda(kwargs.get("device")):
        kwargs["device"] = _CPU
    elif kwargs.get("non_blocking") and args and args[0] == "cpu":
        # From the device to the host: the engine's checkpoint writer counts on a copy that training leaves alone.
        kwargs["copy"] = True
    return _tensor_to(self, *args, **kwargs)


@functools.wraps(_tensor_type)
def _type(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    if dtype is None:
        return _tensor_type(self).replace("torch.", "torch.cuda.", 1)
    if isinstance(dtype, str):
        dtype = dtype.replace("torch.cuda.", "torch.", 1)
    return _tensor_type(self, dtype, non_blocking, **kwargs)


def _itself(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


_compile = torch.compile


@functools.wraps(_compile)
def _compile_ours(model: Callable | None = None, **kwargs: Any) -> Any:
    """torch.compile, but for the engine's own functions, which run as they are."""
    if model is None:
        return functools.partial(_compile_ours, **kwargs)
    if getattr(model, "__module__", "").startswith("megatron."):
        return model
    return _compile(model, **kwargs)


_init_process_group = dist.init_process_group
_new_group = dist.new_group


def _gloo(backend: str | None) -> str:
    """gloo for nccl, for a pair such as "cpu:gloo,cuda:nccl" and for the default, which is that pair."""
    return "gloo" if backend is None or "nccl" in backend else backend


@functools.wraps(_init_process_group)
def _init_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
    kwargs.update(device_id=None, pg_options=None)
    _init_process_group(_gloo(backend), *args, **kwargs)


@functools.wraps(_new_group)
def _new_gloo_group(
    ranks: Any = None, timeout: Any = None, backend: str | None = None, *args: Any, **kwargs: Any
) -> Any:
    kwargs.update(device_id=None, pg_options=None)
    return _new_group(ranks, timeout, None if backend is None else _gloo(backend), **kwargs)


_ITS_DEVICE = "there is one device, the CPU"
_NOTHING_TO_ORDER = "work on the CPU is done when it is issued"

EMULATED: list[Emulated] = [
    Emulated("torch.cuda.is_available", _returning(True), "Megatron refuses to start without CUDA"),
    Emulated("torch.cuda.is_initialized", _returning(True), _ITS_DEVICE),
    Emulated("torch.cuda.device_count", _returning(1), _ITS_DEVICE),
    Emulated("torch.cuda.current_device", _returning(0), _ITS_DEVICE),
    Emulated("torch.cuda.set_device", _returning(None), _ITS_DEVICE),
    Emulated("torch.cuda.device", nullcontext, _ITS_DEVICE),
    Emulated("torch.cuda.get_device_name", _returning("cpu"), _ITS_DEVICE),
    Emulated("torch.cuda.get_device_capability", _returning((0, 0)), "no hardware generation's features"),
    Emulated("torch.cuda.get_device_properties", _device_properties, _ITS_DEVICE),
    Emulated("torch.cuda.Stream", Stream, _NOTHING_TO_ORDER),
    Emulated("torch.cuda.Event", Event, "timers"),
    Emulated("torch.cuda.stream", nullcontext, _NOTHING_TO_ORDER),
    Emulated("torch.cuda.current_stream", _returning(_STREAM), _NOTHING_TO_ORDER),
    Emulated("torch.cuda.default_stream", _returning(_STREAM), _NOTHING_TO_ORDER),
    Emulated("torch.cuda.set_stream", _returning(None), _NOTHING_TO_ORDER),
    Emulated("torch.cuda.synchronize", _returning(None), _NOTHING_TO_ORDER),
    Emulated("torch.cuda.is_current_stream_capturing", _returning(False), "no CUDA graphs"),
    Emulated("torch.cuda.empty_cache", _returning(None), "no caching allocator"),
    Emulated("torch.cuda.memory_stats", _memory_stats, "memory logging"),
    Emulated("torch.cuda.memory_allocated", _resident_bytes, "memory logging"),
    Emulated("torch.cuda.max_memory_allocated", _resident_bytes, "memory logging"),
    Emulated("torch.cuda.memory_reserved", _resident_bytes, "memory logging"),
    Emulated("torch.cuda.max_memory_reserved", _resident_bytes, "memory logging"),
    Emulated("torch.cuda.device_memory_used", _resident_bytes, "memory logging"),
    Emulated("torch.cuda.default_generators", (torch.default_generator,), "random state: the CPU's"),
    Emulated("torch.cuda.get_rng_state", _get_rng_state, "random state: the CPU's"),
    Emulated("torch.cuda.random.get_rng_state", _get_rng_state, "random state: the CPU's"),
    Emulated("torch.cuda.set_rng_state", _set_rng_state, "random state: the CPU's"),
    Emulated("torch.cuda.manual_seed", _manual_seed, "random state: the CPU's"),
    Emulated("torch.cuda.manual_seed_all", _manual_seed, "random state: the CPU's"),
    Emulated("torch.cuda._lazy_call", _lazy_call, "the engine sets the random state through it"),
    Emulated("torch.cuda._lazy_init", _lazy_init, "names a call that is not emulated"),
    Emulated("torch.cuda.nvtx.range_push", _returning(None), "profiling marks"),
    Emulated("torch.cuda.nvtx.range_pop", _returning(None), "profiling marks"),
    Emulated("torch.accelerator.current_accelerator", _returning(None), "the data loader and Dynamo must not see one"),
    Emulated("torch.Tensor.cuda", _itself, "tensors are on the device already"),
    Emulated("torch.Tensor.pin_memory", _itself, "pinned memory needs a driver"),
    Emulated("torch.Tensor.to", _to, "device arguments"),
    Emulated("torch.Tensor.type", _type, "the mixed-precision optimizer compares type names"),
    Emulated("torch.nn.Module.cuda", _itself, "modules are on the device already"),
    Emulated("torch.compile", _compile_ours, "Dynamo's set-up costs more than the engine's small fused functions gain"),
    Emulated("torch.distributed.init_process_group", _init_gloo, "gloo in place of nccl"),
    Emulated("torch.distributed.new_group", _new_gloo_group, "gloo in place of nccl"),
]

_FACTORIES = (
    "arange empty empty_like empty_strided eye full full_like linspace logspace ones ones_like rand rand_like randint "
    "randint_like randn randn_like randperm tensor as_tensor asarray zeros zeros_like tril_indices triu_indices"
).split()
_TENSOR_FACTORIES = "new_empty new_full new_ones new_tensor new_zeros".split()


def _emulate_factories() -> list[Emulated]:
    names = [f"torch.{name}" for name in _FACTORIES] + [f"torch.Tensor.{name}" for name in _TENSOR_FACTORIES]
    return [
        Emulated(name, _on_cpu(functools.reduce(getattr, name.split(".")[1:], torch)), "device arguments")
        for name in names
    ]


EMULATED += _emulate_factories()


def install() -> bool:
    """Emulate CUDA on the CPU, once, and say so on rank 0; do nothing and return False where a CUDA device exists.

    Raises:
        RuntimeError: when Megatron is imported already: it has kept references to what would be replaced.
    """
    global _installed
    if _installed:
        return True
    if torch.cuda.is_available():
        return False
    if "megatron.core" in sys.modules:
        raise RuntimeError("cpu_emulation.install() must be called before Megatron is imported")
    for name, stand_in, _ in EMULATED:
        *path, attribute = name.split(".")[1:]
        setattr(functools.reduce(getattr, path, torch), attribute, stand_in)
    dist.distributed_c10d.init_process_group = _init_gloo
    dist.distributed_c10d.new_group = _new_gloo_group
    _installed = True
    if os.environ.get("RANK", "0") == "0":
        print("cpu_emulation: no CUDA device found; Megatron runs on the CPU over gloo", file=sys.stderr, flush=True)
    return True
