"""What the CPU emulation covers, and that it covers what the engine asks of torch.cuda."""

import ast
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_mixcpt import cpu_emulation, nvidia_driver
from megatron_mixcpt.cpu_emulation import EMULATED
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.testing import run_distributed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the emulation stands aside where CUDA is")

STAND_INS = {name: stand_in for stand_ins in EMULATED.values() for name, stand_in in stand_ins.items()}

# What the engine's modules mention, and a CPU run neither needs nor reaches, or has from torch itself.
WITHOUT_STAND_IN = {
    "torch.cuda.BFloat16Tensor": "a type, there without a device",
    "torch.cuda.FloatTensor": "a type, there without a device",
    "torch.cuda.HalfTensor": "a type, there without a device",
    "torch.cuda.OutOfMemoryError": "a type, there without a device",
    "torch.cuda.amp.custom_bwd": "a decorator, works without a device",
    "torch.cuda.amp.custom_fwd": "a decorator, works without a device",
    "torch.cuda.CUDAGraph": "CUDA graphs (--cuda-graph-impl)",
    "torch.cuda.graph": "CUDA graphs (--cuda-graph-impl)",
    "torch.cuda.graph_pool_handle": "CUDA graphs (--cuda-graph-impl)",
    "torch.cuda._sleep": "CUDA graphs (--cuda-graph-impl)",
    "torch.cuda.MemPool": "user buffers of nccl (--use-nccl-ub) and inference",
    "torch.cuda.use_mem_pool": "user buffers of nccl (--use-nccl-ub) and inference",
    "torch.cuda.memory.MemPool": "user buffers of nccl (--use-nccl-ub) and inference",
    "torch.cuda.memory.CUDAPluggableAllocator": "user buffers of nccl (--use-nccl-ub) and inference",
    "torch.cuda.ExternalStream": "nvshmem, which needs GPUs",
    "torch.cuda.Stream.priority_range": "overlapping expert parallelism, which needs Transformer Engine",
    "torch.cuda.check_error": "profiling (--profile)",
    "torch.cuda.cudart": "profiling (--profile)",
    "torch.cuda.memory._dump_snapshot": "profiling (--record-memory-history)",
    "torch.cuda.memory._record_memory_history": "profiling (--record-memory-history)",
    "torch.cuda.memory._snapshot": "profiling (--record-memory-history)",
    "torch.cuda.memory_snapshot": "inference",
    "torch.cuda.clock_rate": "straggler detection (--log-straggler)",
    "torch.cuda.power_draw": "straggler detection (--log-straggler)",
    "torch.cuda.temperature": "straggler detection (--log-straggler)",
    "torch.cuda.utilization": "straggler detection (--log-straggler)",
    "torch.distributed._coalescing_manager": "works over gloo, whatever device it is given",
}

# The same for what megatron-core 0.20 mentions beyond 0.19: what no configuration of ours imports or runs.
WITHOUT_STAND_IN_IN_0_20 = {
    "torch.cuda.nvtx.range": "hyper connections",
    "torch.cuda.initial_seed": "multi-token prediction",
    "torch.cuda.get_device_name": "state space layers",
    "torch.cuda.is_initialized": "batch-invariant kernels; works without a device",
}
GONE_IN_0_20 = {"torch.cuda._sleep", "torch.cuda.memory._snapshot"}


def run_emulated(func, *args) -> None:
    run_distributed(func, 1, *args, backend="nccl", cpu_emulation=True)


def run_alone(func: Callable[[], None]) -> None:
    """In a process of its own: ranks are born with the emulation installed and Megatron imported."""
    call = f"from {func.__module__} import {func.__name__}; {func.__name__}()"
    result = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_device_contexts_still_hold() -> None:
    run_emulated(check_device_contexts_still_hold)


def check_device_contexts_still_hold() -> None:
    """transformers loads models under `torch.device("meta")`."""
    with torch.device("meta"):
        tensors = torch.empty(2), torch.arange(2), torch.tensor([1.0])
    assert all(tensor.is_meta for tensor in tensors)


def test_every_stand_in_is_in_place() -> None:
    run_emulated(check_every_stand_in_is_in_place)


def check_every_stand_in_is_in_place() -> None:
    for name, stand_in in STAND_INS.items():
        assert cpu_emulation._resolve(name) is stand_in, name


def test_the_engine_needs_nothing_that_has_no_stand_in() -> None:
    run_emulated(check_the_engine_needs_nothing_more)


def check_the_engine_needs_nothing_more() -> None:
    """Read the source of every module of the engine that training imports, and look up what it wants of torch."""
    import megatron.training.argument_utils
    import megatron.training.training  # noqa: F401
    from megatron.core import package_info

    import megatron_mixcpt.models.layer_specs  # noqa: F401

    modules = [module for name, module in sys.modules.items() if name.startswith("megatron.")]
    files = {getattr(module, "__file__", None) or "" for module in modules}
    sources = {file for file in files if file.endswith(".py")}
    assert len(sources) > 100, "the engine's modules were not found"
    needed: dict[str, str] = {}
    for source in sources:
        needed |= dict.fromkeys(cuda_requirements(Path(source)), source)
    without = dict(WITHOUT_STAND_IN)
    if package_info.MINOR >= 20:
        without = {name: why for name, why in without.items() if name not in GONE_IN_0_20} | WITHOUT_STAND_IN_IN_0_20
    missing = {name: source for name, source in needed.items() if name not in STAND_INS.keys() | without}
    assert not missing, f"the engine has come to use {missing}: add a stand-in, or say above why it needs none"
    unused = {name for name in STAND_INS if name.startswith("torch.cuda.") and name not in needed}
    assert not unused, f"the engine no longer uses {unused}"
    assert not without.keys() - needed, f"not used any more: {without.keys() - needed}"


def cuda_requirements(source: Path) -> Iterator[str]:
    """Names of torch that a file takes from torch.cuda, by attribute or by import, or calls with a device."""
    inner = set()
    for node in ast.walk(ast.parse(source.read_text())):  # breadth first: torch.cuda.a.b comes before torch.cuda.a
        if isinstance(node, ast.Attribute):
            name = dotted_name(node)
            if name.startswith("torch.cuda.") and node not in inner:
                yield name
            inner.add(node.value)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and any(keyword.arg == "device" for keyword in node.keywords):
            yield from factory_names(node.func)


def factory_names(function: ast.expr) -> Iterator[str]:
    """What a call with a device calls, where that is a function of torch or a method of tensors."""
    if not isinstance(function, ast.Attribute):
        return
    name = dotted_name(function)
    if name.startswith("torch."):
        yield name
    elif hasattr(torch.Tensor, function.attr):
        yield f"torch.Tensor.{function.attr}"


def dotted_name(node: ast.expr) -> str:
    """a.b.c of an attribute chain, "" for one that does not start at a name."""
    if isinstance(node, ast.Name):
        return node.id
    prefix = dotted_name(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{prefix}.{node.attr}" if prefix else ""


def test_what_has_no_stand_in_is_named() -> None:
    run_emulated(check_what_has_no_stand_in_is_named)


def check_what_has_no_stand_in_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"torch\.cuda\.current_blas_handle, called at .*test_cpu_emulation"):
        torch.cuda.current_blas_handle()
    with pytest.raises(NotImplementedError, match=r"an operation on a CUDA device, called at .*test_cpu_emulation"):
        torch.hann_window(4, device="cuda")


def test_cuda_tensors_are_on_the_cpu() -> None:
    run_emulated(check_cuda_tensors_are_on_the_cpu)


def check_cuda_tensors_are_on_the_cpu() -> None:
    cpu = torch.device("cpu")
    for device in ("cuda", "cuda:0", torch.device("cuda", 0), torch.cuda.current_device()):
        assert torch.zeros(2, device=device).device == cpu
        assert torch.zeros(2).new_ones(2, device=device).device == cpu
        assert torch.zeros(2).to(device).device == cpu
        assert torch.zeros(2).to(device=device, dtype=torch.int32).dtype == torch.int32
    assert torch.nn.Linear(2, 2).cuda().weight.cuda(non_blocking=True).pin_memory().device == cpu
    assert torch.empty(2, dtype=torch.bfloat16, pin_memory=True).type() == "torch.cuda.BFloat16Tensor"
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.zeros(2).to(torch.float64).dtype == torch.zeros(2).type(torch.float64).dtype == torch.float64


def test_a_copy_to_the_host_is_a_copy() -> None:
    run_emulated(check_a_copy_to_the_host_is_a_copy)


def check_a_copy_to_the_host_is_a_copy() -> None:
    """The asynchronous checkpoint writer takes one, and training goes on in place meanwhile."""
    weights = torch.zeros(2)
    copied = weights.to("cpu", non_blocking=True)
    weights.fill_(1.0)
    assert copied.tolist() == [0.0, 0.0]


def test_random_state_streams_and_events() -> None:
    run_emulated(check_random_state_streams_and_events)


def check_random_state_streams_and_events() -> None:
    torch.cuda.manual_seed(3)
    state, expected = torch.cuda.get_rng_state(), torch.rand(2)
    torch.cuda.set_rng_state(state)
    torch.testing.assert_close(torch.rand(2), expected, rtol=0, atol=0)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(torch.cuda.Stream()):
        start.record()
        torch.cuda.current_stream().wait_event(start)
        end.record()
    torch.cuda.synchronize()
    assert 0.0 <= start.elapsed_time(end) < 1e3
    assert torch.cuda.memory_allocated() > 2**20


def test_groups_of_nccl_are_groups_of_gloo() -> None:
    run_distributed(check_groups_of_nccl_are_groups_of_gloo, 2, backend="nccl", cpu_emulation=True)


def check_groups_of_nccl_are_groups_of_gloo() -> None:
    group = dist.new_group([0, 1], backend="nccl", device_id=torch.device("cuda", 0))
    assert dist.get_backend() == dist.get_backend(group) == "gloo"
    total = torch.ones(2, device="cuda", dtype=torch.bfloat16)
    dist.all_reduce(total, group=group)
    assert total.tolist() == [2.0, 2.0]
    # As the dispatcher of experts hands them over: on the device, where it believes them to be on the host.
    rank, sizes = dist.get_rank(), torch.tensor([[1, 2], [0, 1]], device="cuda")
    received = torch.empty(int(sizes[:, rank].sum()), device="cuda")
    sent = torch.full((int(sizes[rank].sum()),), float(rank), device="cuda")
    dist.all_to_all_single(received, sent, output_split_sizes=sizes[:, rank], input_split_sizes=sizes[rank])
    assert received.tolist() == [[0.0], [0.0, 0.0, 1.0]][rank]
    parts = [torch.empty(1, 2, device="cuda"), torch.empty(3, 2, device="cuda")]
    dist.all_gather(parts, torch.full_like(parts[rank], rank))
    assert [part.unique().tolist() for part in parts] == [[0.0], [1.0]]
    dist.reduce_scatter(parts[rank], [torch.full_like(part, rank + 1.0) for part in parts])
    assert parts[rank].unique().tolist() == [3.0]


def test_compilation_is_left_out_for_the_engine_alone() -> None:
    run_emulated(check_compilation_is_left_out_for_the_engine_alone)


def check_compilation_is_left_out_for_the_engine_alone() -> None:
    """Our losses are compiled in ranks that have a process group; the engine's fused functions run as written."""
    from megatron.core.fusions import fused_bias_swiglu

    assert fused_bias_swiglu.swiglu.__name__ == "swiglu" and not hasattr(
        fused_bias_swiglu.swiglu, "_torchdynamo_inline"
    )
    counters = torch._dynamo.utils.counters
    x = torch.randn(4, 8, requires_grad=True)
    expected = softmax_of_shifted(x)
    compiled = torch.compile(softmax_of_shifted)(x)
    torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def softmax_of_shifted(x: torch.Tensor) -> torch.Tensor:
    """Something to compile that makes tensors and moves them, as the stand-ins must be compiled along."""
    return (x + torch.arange(x.size(-1), device=x.device).to(x.dtype)).softmax(dim=-1)


def install_alone(**environment: str) -> subprocess.CompletedProcess:
    """Install twice in a process of its own, with nothing else in its environment."""
    program = (
        "import os, importlib.util; from megatron_mixcpt import cpu_emulation as e; e.install(); e.install();"
        "print(os.environ.get('CUDA_VISIBLE_DEVICES'), importlib.util.find_spec('transformer_engine') is None)"
    )
    environment["PYTHONPATH"] = str(Path(cpu_emulation.__file__).parents[1])
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_the_cpu_by_wish_is_announced_in_one_line() -> None:
    """And to every library it is a machine without a GPU, also where Transformer Engine is installed."""
    process = install_alone(MIXCPT_DEVICE="cpu")
    assert process.stderr == "cpu_emulation: MIXCPT_DEVICE=cpu, Megatron runs on the CPU over gloo\n"
    assert process.stdout == " True\n"


def test_a_gpu_without_cuda_ends_the_process_in_one_line(tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text('#!/bin/sh\n[ "$1" = --list-gpus ] && echo "GPU 0: NVIDIA H100" || echo 470.57.02\n')
    nvidia_smi.chmod(0o755)
    process = install_alone(PATH=str(tmp_path))
    assert process.returncode == 1 and not process.stdout
    assert re.fullmatch(
        r"error: this machine has NVIDIA devices \(.*\) and CUDA does not work: .*; or set MIXCPT_DEVICE=cpu to run on "
        r"the CPU\n",
        process.stderr,
    )


# The decision itself, on machines made up of what torch, the driver and the environment say.


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with an NVIDIA device on which CUDA does not work."""
    for name in ("MIXCPT_DEVICE", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia_driver, "visible_devices", lambda: "/dev/nvidia0")
    monkeypatch.setattr(nvidia_driver, "driver_version", lambda: "470.57.02")
    return monkeypatch


def test_a_gpu_without_cuda_is_refused_with_the_words_of_torch(machine: pytest.MonkeyPatch) -> None:
    def no_driver_call() -> bool:
        said = "CUDA initialization: Error 802: system not yet initialized (Triggered internally at a.cpp:1.)"
        warnings.warn(said, stacklevel=1)
        return False

    machine.setattr(torch.cuda, "is_available", no_driver_call)
    machine.setattr(torch.version, "cuda", "13.0")
    machine.setattr(nvidia_driver, "driver_version", lambda: "580.65.06")
    expected = (
        r'/dev/nvidia0.*580\.65\.06.*"CUDA initialization: Error 802: system not yet initialized": see.*=cpu to run'
    )
    with pytest.raises(ConfigError, match=expected):
        cpu_emulation._why_the_cpu()


def test_hidden_devices_and_machines_without_any_mean_the_cpu(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cpu_emulation._why_the_cpu() == "no CUDA device found"
    machine.delenv("CUDA_VISIBLE_DEVICES")
    machine.setattr(nvidia_driver, "visible_devices", lambda: None)
    assert cpu_emulation._why_the_cpu() == "no CUDA device found"


def test_another_device_than_the_cpu_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("MIXCPT_DEVICE", "cuda")
    with pytest.raises(ConfigError, match=r"MIXCPT_DEVICE=cuda is not a choice: cpu asks"):
        cpu_emulation._why_the_cpu()


def test_ranks_that_outnumber_the_devices_are_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "device_count", lambda: 2)
    machine.setenv("LOCAL_WORLD_SIZE", "2")
    cpu_emulation._check_a_device_for_each_rank()
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    machine.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(
        ConfigError, match=r"4 ranks on this machine for 2 CUDA devices \(CUDA_VISIBLE_DEVICES=0,1\): star"
    ):
        cpu_emulation._check_a_device_for_each_rank()


def test_the_queues_of_a_device_are_decided_before_the_driver_starts(machine: pytest.MonkeyPatch) -> None:
    """The first question to torch.cuda may start the driver, which reads the variable then."""
    seen = []
    machine.setattr(
        torch.cuda, "is_available", lambda: seen.append(os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")) or True
    )
    machine.setattr(torch.cuda, "device_count", lambda: 1)
    machine.setattr(cpu_emulation, "_installed", False)
    machine.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    assert not cpu_emulation.install()
    machine.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # the user's own
    assert not cpu_emulation.install()
    assert seen == ["1", "32"]


# Tools that neither run a model nor train: they work on the CPU on any machine, whatever its driver.
ON_ANY_MACHINE = {"convert_from_hf", "convert_to_hf", "plan", "preprocess_mixture", "report", "select_alignment"}


def test_every_entry_decides_first(repository: Path) -> None:
    """Before anything of the package or of the engine is imported, for that may ask torch about devices."""
    tools = {path for path in (repository / "tools").glob("*.py") if path.stem not in ON_ANY_MACHINE}
    assert len(tools) == 6
    for path in (*tools, repository / "examples" / "recipes.py"):
        statements = ast.parse(path.read_text()).body
        named = [ast.unparse(statement) for statement in statements if "megatron" in ast.unparse(statement)]
        after_docstring = [text for text in named if not text.startswith(("'", '"'))]
        first = statements.index(next(node for node in statements if "cpu_emulation" in ast.unparse(node)))
        assert after_docstring[0] == "from megatron_mixcpt import cpu_emulation", path
        assert ast.unparse(statements[first + 1]) == "cpu_emulation.install()", path


def test_install_refuses_to_come_too_late() -> None:
    run_alone(check_install_refuses_to_come_too_late)


def check_install_refuses_to_come_too_late() -> None:
    sys.modules["megatron.core"] = sys.modules[__name__]  # as if
    with pytest.raises(RuntimeError, match="must come before the import of megatron"):
        cpu_emulation.install()


def test_install_leaves_a_machine_with_cuda_alone() -> None:
    run_alone(check_install_leaves_a_machine_with_cuda_alone)


def check_install_leaves_a_machine_with_cuda_alone() -> None:
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1
    os.environ.pop("MIXCPT_DEVICE", None)
    originals = {name: cpu_emulation._resolve(name) for name in STAND_INS if not name.startswith("torch.cuda.")}
    assert not cpu_emulation.install()
    assert all(cpu_emulation._resolve(name) is original for name, original in originals.items())
