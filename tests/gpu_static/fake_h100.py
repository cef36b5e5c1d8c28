"""Lets torch, Inductor and Triton believe in an H100, on a machine without one: for fake tensors and for compiling.

What can be shown without a device is shown on *fake tensors* (``torch._subclasses.FakeTensorMode``): they have a shape,
a dtype and the device ``cuda:0``, and no values. Operators on them check devices as on a GPU and compute nothing;
``torch.compile`` traces them, and Inductor writes for them the kernels that it would write for the GPU.

How to use it. :func:`install` replaces parts of torch for the rest of the process, so a test runs its body in a process
of its own, by :func:`in_own_process`, and asserts on what it returns:

    def forward() -> Watch:                      # at the top of the test's module: it is found by its name
        with on_device() as watch:
            x = torch.empty(4, 8, device="cuda", dtype=torch.bfloat16)
            model(x)
        return watch

    def test_forward_stays_on_the_device() -> None:
        in_own_process(forward).check()

:func:`on_device` makes every tensor fake and returns the ``Watch`` (``watch.py``) that records tensors made elsewhere,
operators that wait for the device, and copies between it and the host. To go on with the same model under a second
watch, hand it the same mode: ``on_device(fake)`` with ``fake = FakeTensorMode()``.

Autograd's own backward does not run on fake tensors of ``cuda``: its engine asks the driver for streams. Call the
``backward`` of an ``autograd.Function`` instead (``autograd_by_hand.py``).

Every private name of torch, Inductor and Triton that these tests touch is in this file or in ``kernels.py``.
"""

import functools
import os
import pickle
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

requires_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="triton is not installed (it comes with torch's CUDA wheels)"
)

# What CUDA reports of an H100 SXM, as far as torch, Inductor and Triton ask.
PROPERTIES = types.SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    type="cuda",
    index=0,
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    warp_size=32,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    L2_cache_size=50 * 2**20,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5_120,
    gcnArchName="",
)


def in_own_process(
    function: Callable[..., Any],
    *args: Any,
    compiles: bool = False,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 240.0,
) -> Any:
    """``function(*args)`` in a new Python process with the H100 installed; its result.

    ``function`` stands at the top of an importable module; arguments and result can be pickled. With ``compiles`` the
    compilers believe in the H100 too (importing them takes seconds); what they write goes to a folder that is deleted.

    Raises:
        AssertionError: with what the process printed, if it failed.
    """
    with tempfile.TemporaryDirectory(prefix="gpu_static_") as folder:
        call, result = Path(folder, "call"), Path(folder, "result")
        call.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args)))
        child = f"from {__name__} import _run_call; _run_call({str(call)!r}, {str(result)!r}, {compiles})"
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
            "TRITON_CACHE_DIR": f"{folder}/triton",
            # A pool of compiling processes would not have the H100.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            # A kernel found in a cache would not be written, and so not be seen.
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
            "OMP_NUM_THREADS": "1",
        }
        run = subprocess.run(
            [sys.executable, "-c", child],
            cwd=REPOSITORY,
            env=os.environ | own | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if run.returncode or not result.exists():
            raise AssertionError(
                f"{function.__qualname__} failed with code {run.returncode}:\n{run.stdout[-4000:]}{run.stderr[-12000:]}"
            )
        return pickle.loads(result.read_bytes())


def _run_call(call: str, result: str, compiles: bool) -> None:
    """In the new process: what :func:`in_own_process` wants of it."""
    import importlib

    module, name, args = pickle.loads(Path(call).read_bytes())
    install(compiles)
    outcome = functools.reduce(getattr, name.split("."), importlib.import_module(module))(*args)
    Path(result).write_bytes(pickle.dumps(outcome))


@contextmanager
def on_device(fake: Any = None) -> Iterator[Any]:
    """Every tensor that is made inside is fake; yields the ``Watch`` over what happens to them.

    ``fake``: the ``FakeTensorMode`` of tensors made before, which may be used on inside; None: a new one. A tensor with
    values from outside is refused, unless the mode has ``allow_non_fake_inputs``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tests.gpu_static.watch import Watch

    with fake or FakeTensorMode(allow_non_fake_inputs=False), Watch() as watch:
        yield watch


def install(compiles: bool = False) -> None:
    """Put the H100 in place, for the rest of this process; before anything is compiled or traced."""
    import torch

    _install_in_torch(torch)
    if compiles:
        _install_in_dynamo()
        _install_in_triton(torch)
        _install_in_inductor()


def _returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _install_in_torch(torch: Any) -> None:
    """What the engine, Dynamo and Inductor ask torch; ``is_available`` stays False, for there is no driver to call."""
    cuda = torch.cuda
    cuda.device_count = _returning(1)
    cuda.current_device = _returning(0)
    cuda.set_device = _returning(None)
    cuda.get_device_properties = _returning(PROPERTIES)
    cuda.get_device_capability = _returning((PROPERTIES.major, PROPERTIES.minor))
    cuda.get_device_name = _returning(PROPERTIES.name)
    cuda.is_bf16_supported = _returning(True)
    cuda._is_compiled = _returning(True)  # torch's CPU wheels have no CUDA at all, and compile for it nevertheless
    # The method would start the driver; the conversion does not, on fake tensors.
    torch.Tensor.cuda = lambda self, device=None, non_blocking=False, **_: self.to("cuda", non_blocking=non_blocking)


def _install_in_dynamo() -> None:
    from torch._dynamo.device_interface import CudaInterface

    for name, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": PROPERTIES,
        "get_compute_capability": 90,
        "is_bf16_supported": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
        "synchronize": None,
    }.items():
        setattr(CudaInterface, name, staticmethod(_returning(value)))
    CudaInterface.Worker.get_device_properties = staticmethod(_returning(PROPERTIES))  # type: ignore[assignment]


class _Driver:
    """Triton's driver, as far as compiling asks for it."""

    def __init__(self, target: Any, device: Any) -> None:
        self._target, self._device = target, device

    def get_current_target(self) -> Any:
        return self._target

    def get_active_torch_device(self) -> Any:
        return self._device

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, *_: Any) -> int:
        return 0

    def set_current_device(self, *_: Any) -> None:
        pass


def _install_in_triton(torch: Any) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    # The setter of `active` would do, but reading it first starts the real driver.
    driver._active = _Driver(GPUTarget("cuda", 90, 32), torch.device("cuda", 0))


def _install_in_inductor() -> None:
    import torch._inductor.config as config
    import torch._inductor.runtime.triton_helpers as helpers
    import torch.utils._triton as triton_of_torch

    # Imported by name into many modules of Inductor; has_triton itself would ask every device there is.
    real = triton_of_torch.has_triton
    for module in [module for module in sys.modules.values() if getattr(module, "has_triton", None) is real]:
        module.has_triton = _returning(True)  # type: ignore[attr-defined]
    helpers.set_driver_to_gpu = _returning(None)
    helpers.set_driver_to_cpu = _returning(None)
    # Renamed between versions; both would load a kernel onto the device as soon as it is compiled.
    for name in ("use_static_cuda_launcher", "use_static_triton_launcher"):
        if hasattr(config, name):
            setattr(config, name, False)
    # Folding computes constants, which needs tensors with values.
    config.joint_graph_constant_folding = False
