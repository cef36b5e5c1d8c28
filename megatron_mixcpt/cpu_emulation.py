"""Where the engine runs: on CUDA devices, or on a machine that has none on the CPU, although it assumes them.

`install()` decides it. For the CPU it puts stand-ins for the parts of `torch` that the engine uses and that need a GPU:
afterwards there is one "CUDA device", number 0, and it is the CPU. `EMULATED` lists every stand-in under the reason for
it; a call that is not listed and needs a device raises `NotImplementedError` naming it. Only the listed attributes are
replaced, and no hook runs on ordinary tensor operations, so that a training step costs what it costs.

An entry script calls it at its top level, before anything of Megatron is imported; not under
`if __name__ == "__main__"`, for the engine's asynchronous checkpoint writer is a process that imports the script again:

    from megatron_mixcpt import cpu_emulation

    cpu_emulation.install()
"""

import functools
import inspect
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._device import _device_constructors

from megatron_mixcpt import nvidia_driver
from megatron_mixcpt.errors import ConfigError, exit_on_user_error

DEVICE_VARIABLE = "MIXCPT_DEVICE"

_CPU = torch.device("cpu")
_installed = False


@exit_on_user_error
def install() -> bool:
    """Emulate CUDA on the CPU, once, and say so on rank 0; where CUDA works do nothing and return False.

    `MIXCPT_DEVICE=cpu` asks for the CPU on a machine that has GPUs, and so does a `CUDA_VISIBLE_DEVICES` that hides all
    of them. Otherwise the process ends with one line where there are NVIDIA devices and CUDA does not work, where ranks
    outnumber the devices, and where `MIXCPT_DEVICE` has another value.

    Raises:
        RuntimeError: when Megatron is imported already: it holds references to what would be replaced.
    """
    global _installed
    if _installed:
        return True
    # The driver reads it when it starts, which the first question about devices may cause. With one queue, kernels of
    # tensor parallelism start in the order they are issued, as the engine demands of devices before Blackwell.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    reason = _why_the_cpu()
    if reason is None:
        _check_a_device_for_each_rank()
        return False
    if "megatron.core" in sys.modules:
        raise RuntimeError("cpu_emulation.install() must come before the import of megatron")
    # `with torch.device(...)` remembers, at its first use, which functions make tensors: it must meet torch's own.
    _device_constructors()
    for stand_ins in EMULATED.values():
        for name, stand_in in stand_ins.items():
            owner, attribute = name.rsplit(".", 1)
            setattr(_resolve(owner), attribute, stand_in)
    _silence_what_is_meant_to_be()
    _installed = True
    if os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None:
        print(f"cpu_emulation: {reason}, Megatron runs on the CPU over gloo", file=sys.stderr, flush=True)
    return True


def _why_the_cpu() -> str | None:
    """Why the engine is to run on the CPU; None: CUDA works.

    Raises:
        ConfigError: there are NVIDIA devices and CUDA does not work, or the environment asks for an unknown device.
    """
    wanted = os.environ.get(DEVICE_VARIABLE, "")
    if wanted == "cpu":
        # For this process and those that it starts it is a machine without a GPU, to every library.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.modules["transformer_engine"] = None  # type: ignore[assignment] # Its layers compute on CUDA alone.
        return f"{DEVICE_VARIABLE}=cpu"
    if wanted:
        raise ConfigError(
            f"{DEVICE_VARIABLE}={wanted} is not a choice: cpu asks for the CPU; without the variable GPUs are used "
            "where there are any"
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    if nvidia_driver.no_device_wanted() or not (shown_by := nvidia_driver.visible_devices()):
        return "no CUDA device found"
    words = " ".join(str(warning.message) for warning in said).split("(Triggered internally")[0].strip()
    reason = nvidia_driver.why_cuda_fails(torch.__version__, torch.version.cuda, words)
    raise ConfigError(
        f"this machine has NVIDIA devices ({shown_by}) and CUDA does not work: {reason}; or set {DEVICE_VARIABLE}=cpu "
        "to run on the CPU"
    )


def _check_a_device_for_each_rank() -> None:
    """Raise ConfigError where this machine's ranks outnumber its devices: each takes the one of its local number."""
    num_ranks = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0")) + 1)
    num_devices = torch.cuda.device_count()
    if num_ranks > num_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        visible = f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""
        raise ConfigError(
            f"{num_ranks} ranks on this machine for {num_devices} CUDA device{'s' * (num_devices > 1)}{visible}: "
            f"start at most {num_devices} here (torchrun --nproc-per-node, GPUS_PER_NODE of the examples), or set "
            f"{DEVICE_VARIABLE}=cpu to run on the CPU"
        )


def _silence_what_is_meant_to_be() -> None:
    """Leave out the warnings that every rank would repeat at every start, of what a machine without a GPU lacks."""
    for message in (
        "'pin_memory' argument is set as true but no accelerator is found",
        "(Transformer Engine and )?Apex (are|is) not installed",
        "Only transformer-engine>=.* supports MoE experts",
        ".*one_logger package is required",
    ):
        warnings.filterwarnings("ignore", message=message)


def _resolve(name: str) -> Any:
    """The object of a dotted name that starts with "torch"."""
    return functools.reduce(getattr, name.split(".")[1:], torch)


# Queries: what a device, its memory and its random state are.


def _returning(value: Any) -> Callable[..., Any]:
    """A function that takes anything and returns `value`."""
    return lambda *args, **kwargs: value


def _peak_memory_bytes(*args: Any, **kwargs: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _no_memory_stats(*args: Any, **kwargs: Any) -> defaultdict[str, int]:
    return defaultdict(int)


def _device_properties(*args: Any, **kwargs: Any) -> SimpleNamespace:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return SimpleNamespace(
        name="cpu", total_memory=memory_bytes, major=0, minor=0, multi_processor_count=os.cpu_count()
    )


def _get_rng_state(*args: Any, **kwargs: Any) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_rng_state(new_state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    torch.default_generator.set_state(new_state)


def _manual_seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _call_now(callback: Callable[[], None], **kwargs: Any) -> None:
    callback()


def _refuse() -> None:
    """What everything of `torch` that needs a CUDA device runs first; reached by what is not emulated.

    Raises:
        NotImplementedError: naming the function of torch and the line that called it.
    """
    frame, name = sys._getframe(1), "an operation on a CUDA device"
    while frame.f_back is not None and Path(frame.f_code.co_filename).is_relative_to(Path(torch.__file__).parent):
        frame, name = frame.f_back, f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
    raise NotImplementedError(
        f"{name}, called at {frame.f_code.co_filename}:{frame.f_lineno}, needs a CUDA device and has no stand-in on "
        f"the CPU: if Megatron has come to need it, add one to EMULATED in {__file__}"
    )


# Streams and events: work on the CPU is done when it is issued, so that there is nothing to order or to wait for.


class Stream:
    """Stands for `torch.cuda.Stream`."""

    device = _CPU
    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        pass

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record `event`, or a new one, and return it."""
        event = event or Event()
        event.record(self)
        return event

    wait_event = wait_stream = synchronize = _returning(None)
    query = _returning(True)


class Event:
    """Stands for `torch.cuda.Event`: it keeps the time when it was recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Set the time to now."""
        self._recorded_s = time.perf_counter()

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to `end_event`."""
        return (end_event._recorded_s - self._recorded_s) * 1e3

    wait = synchronize = _returning(None)
    query = _returning(True)


_STREAM = Stream()


# Devices: every tensor is on the CPU, and "cuda" means it.


def _is_cuda(device: Any) -> bool:
    """Whether a `device` argument means a CUDA device, as an integer does."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return device.startswith("cuda") if isinstance(device, str) else type(device) is int


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """`factory` with a CUDA `device` turned into the CPU, and without pinned memory, which needs a driver."""

    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return on_cpu


def _factories(owner: str, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{owner}.{name}": _on_cpu(_resolve(f"{owner}.{name}")) for name in names.split()}


def _itself(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


_tensor_to, _tensor_type = torch.Tensor.to, torch.Tensor.type


@functools.wraps(_tensor_to)
def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if args and _is_cuda(args[0]):
        args = (_CPU, *args[1:])
    elif "device" in kwargs and _is_cuda(kwargs["device"]):
        kwargs["device"] = _CPU
    elif args and args[0] == "cpu" and kwargs.get("non_blocking"):
        # From the device to the host: the asynchronous checkpoint writer counts on a copy that training leaves alone.
        kwargs["copy"] = True
    return _tensor_to(self, *args, **kwargs)


@functools.wraps(_tensor_type)
def _type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dtype is None:
        return _tensor_type(self).replace("torch.", "torch.cuda.", 1)
    return _tensor_type(self, dtype, *args, **kwargs)


# Compilation and process groups.

_compile = torch.compile


@functools.wraps(_compile)
def _compile_others(model: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
    if model is None:
        return functools.partial(_compile_others, **kwargs)
    if getattr(model, "__module__", "").startswith("megatron."):
        return model
    return _compile(model, **kwargs)


def _over_gloo(make_group: Callable[..., Any], backend: str | None) -> Callable[..., Any]:
    """`make_group` with gloo wherever nccl is asked for, `backend` by default, and without what is nccl's alone."""
    signature = inspect.signature(make_group)

    @functools.wraps(make_group)
    def over_gloo(*args: Any, **kwargs: Any) -> Any:
        arguments = {"backend": backend} | signature.bind(*args, **kwargs).arguments
        if "nccl" in (arguments["backend"] or ""):
            arguments["backend"] = "gloo"
        return make_group(**arguments | {"device_id": None, "pg_options": None})

    return over_gloo


_all_to_all_single = dist.all_to_all_single


@functools.wraps(_all_to_all_single)
def _all_to_all_of_sizes(
    output: torch.Tensor, input: torch.Tensor, output_split_sizes: Any = None, input_split_sizes: Any = None, **kw: Any
) -> Any:
    """Sizes [ranks] may be tensors."""
    sizes = (size.tolist() if torch.is_tensor(size) else size for size in (output_split_sizes, input_split_sizes))
    return _all_to_all_single(output, input, *sizes, **kw)


_all_gather = dist.all_gather


@functools.wraps(_all_gather)
def _gather_of_any_sizes(
    tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
) -> Any:
    """Parts [n, ...] of different lengths are filled up to the longest."""
    if len({part.shape for part in tensor_list}) == 1:
        return _all_gather(tensor_list, tensor, group, async_op)
    assert not async_op, "nothing in the engine asks for it"
    longest = max(len(part) for part in tensor_list)
    filled = torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
    gathered = [torch.empty_like(filled) for _ in tensor_list]
    _all_gather(gathered, filled, group)
    for part, whole in zip(tensor_list, gathered, strict=True):
        part.copy_(whole[: len(part)])
    return None


@functools.wraps(dist.reduce_scatter)
def _scatter_sums_of_any_sizes(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: Any = None,
    async_op: bool = False,
) -> None:
    """Every rank gets all sums and keeps its own."""
    assert not async_op, "nothing in the engine asks for it"
    sums = torch.cat(input_list)
    dist.all_reduce(sums, op, group)
    output.copy_(sums.split([len(part) for part in input_list])[dist.get_rank(group)])


_init_process_group = _over_gloo(dist.init_process_group, "gloo")
_new_group = _over_gloo(dist.new_group, None)

# Reason -> attribute of torch -> what stands in for it.
EMULATED: dict[str, dict[str, Any]] = {
    "there is one device, the CPU, of the oldest CUDA generation whose flags are not refused": {
        "torch.cuda.is_available": _returning(True),
        "torch.cuda.device_count": _returning(1),
        "torch.cuda.current_device": _returning(0),
        "torch.cuda.set_device": _returning(None),
        "torch.cuda.device": nullcontext,
        "torch.cuda.get_device_capability": _returning((8, 0)),
        "torch.cuda.get_device_properties": _device_properties,
    },
    "work on the CPU is done when it is issued": {
        "torch.cuda.Stream": Stream,
        "torch.cuda.Event": Event,
        "torch.cuda.stream": nullcontext,
        "torch.cuda.current_stream": _returning(_STREAM),
        "torch.cuda.default_stream": _returning(_STREAM),
        "torch.cuda.set_stream": _returning(None),
        "torch.cuda.synchronize": _returning(None),
        "torch.cuda.is_current_stream_capturing": _returning(False),
    },
    "memory is the process's, without an allocator of its own": {
        "torch.cuda.empty_cache": _returning(None),
        "torch.cuda.memory_stats": _no_memory_stats,
        "torch.cuda.memory_allocated": _peak_memory_bytes,
        "torch.cuda.max_memory_allocated": _peak_memory_bytes,
        "torch.cuda.memory_reserved": _peak_memory_bytes,
        "torch.cuda.max_memory_reserved": _peak_memory_bytes,
        "torch.cuda.device_memory_used": _peak_memory_bytes,
        "torch.Tensor.pin_memory": _itself,
        "torch.cuda.cudart": _returning(SimpleNamespace(cudaHostRegister=_returning(0))),
    },
    "the device's random state is the CPU's": {
        "torch.cuda.default_generators": (torch.default_generator,),
        "torch.cuda.get_rng_state": _get_rng_state,
        "torch.cuda.random.get_rng_state": _get_rng_state,
        "torch.cuda.set_rng_state": _set_rng_state,
        "torch.cuda.manual_seed": _manual_seed,
        "torch.cuda._lazy_call": _call_now,
    },
    "profiling marks have no reader": {
        "torch.cuda.nvtx.range_push": _returning(None),
        "torch.cuda.nvtx.range_pop": _returning(None),
    },
    "tensors and modules are on the device already": {
        "torch.Tensor.cuda": _itself,
        "torch.nn.Module.cuda": _itself,
        "torch.Tensor.to": _to,
    },
    "tensors are made with device='cuda' or the device's number": {
        **_factories("torch", "arange as_tensor asarray empty empty_like empty_strided eye full full_like linspace"),
        **_factories("torch", "logspace ones ones_like rand rand_like randint randint_like randn randn_like randperm"),
        **_factories("torch", "tensor tril_indices triu_indices zeros zeros_like"),
        **_factories("torch.Tensor", "new_empty new_full new_ones new_tensor new_zeros"),
    },
    "the mixed-precision optimizer takes tensors of 'torch.cuda' types only": {"torch.Tensor.type": _type},
    "the data loader and Dynamo would look for a driver": {
        "torch.accelerator.current_accelerator": _returning(None),
    },
    "compiling the engine's fused functions takes longer than it saves on a CPU": {"torch.compile": _compile_others},
    "nccl needs GPUs": {
        "torch.distributed.init_process_group": _init_process_group,
        "torch.distributed.distributed_c10d.init_process_group": _init_process_group,
        "torch.distributed.new_group": _new_group,
        "torch.distributed.distributed_c10d.new_group": _new_group,
    },
    "the engine turns the sizes of what experts exchange into arrays where they are CUDA tensors": {
        "torch.distributed.all_to_all_single": _all_to_all_of_sizes,
        "torch.distributed.distributed_c10d.all_to_all_single": _all_to_all_of_sizes,
    },
    "gloo takes parts of one size alone, and experts that ranks share get as many tokens as are routed to them": {
        "torch.distributed.all_gather": _gather_of_any_sizes,
        "torch.distributed.reduce_scatter": _scatter_sums_of_any_sizes,
    },
    "what has no stand-in says its name": {"torch.cuda._lazy_init": _refuse},
}
