"""The kernels that Inductor writes for the H100: their source, what ptxas makes of them, or a run in the interpreter.

Nothing starts a kernel here. ``losses/compiled.py`` compiles a function for fake tensors of ``cuda:0`` as it would on a
GPU; :func:`compiling` notes what Inductor wrote, and hands back the function's own results instead of running it.
:func:`interpreting` runs what Inductor wrote, in Triton's interpreter on tensors of the CPU.
"""

import contextlib
import functools
import importlib.util
import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from megatron_mixcpt.losses import compiled
from tests.gpu_static.watch import as_one_program


@dataclass
class Graph:
    """One compilation: the function's name, the program that starts its kernels, and their sources by name."""

    function: str
    program: str
    sources: dict[str, str]

    @property
    def launches(self) -> int:
        """Kernels that one call starts."""
        return len(re.findall(r"^\s+\S+\.run\(", self.program, re.M)) + len(
            re.findall(r"^\s+extern_kernels\.", self.program, re.M)
        )


@dataclass
class Built:
    """One kernel as ptxas builds it, with the first of the configurations that are tried on the device."""

    name: str
    load_bytes: Counter[int]
    """Bytes of a load of memory -> how many such instructions."""
    store_bytes: Counter[int]
    instructions: int
    """Of the whole kernel, as machine code."""
    elements_per_thread: int
    """Of the iteration space; the instructions of a kernel without a loop, over these, are those per element."""
    has_loop: bool
    registers: int
    spills: int
    """Loads and stores of registers that did not fit, and bytes of stack."""
    divides: bool
    """Whether an index is divided in 64 bits."""
    index_type: set[str] = field(default_factory=set)
    """Types of the sizes in its signature: i32 or i64."""


class NotRun(Exception):
    """Raised in place of running compiled code."""


@contextmanager
def _noted(run: Callable[[str, dict[str, str], list[Any]], Any]) -> Iterator[list[Graph]]:
    """Note each compilation; ``run(program, sources, inputs)`` in place of a compiled program."""
    import torch._inductor.async_compile as async_compile
    from torch._inductor.graph import GraphLowering
    from torch._inductor.output_code import CompiledFxGraph

    graphs: list[Graph] = []
    sources: dict[str, str] = {}
    programs: dict[int, tuple[str, dict[str, str]]] = {}
    current = [""]

    def note_kernel(self: Any, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
        sources[kernel_name] = source_code
        return None

    def note_program(program: str) -> None:
        graphs.append(Graph(current[0], program, sources))

    def call(self: Any, inputs: list[Any]) -> Any:
        if id(self) not in programs:
            # The program that was just loaded, and this is the first call of it.
            graphs[-1].sources = dict(sources)
            programs[id(self)] = graphs[-1].program, graphs[-1].sources
            sources.clear()
        return run(*programs[id(self)], inputs)

    call_compiled = compiled._call_compiled

    def named(function: Any, rows: tuple[Tensor, ...]) -> Any:
        current[0] = function.__qualname__.replace(".<locals>", "")
        return call_compiled(function, rows)

    with (
        patch.object(GraphLowering, "save_output_code", staticmethod(note_program)),
        patch.object(async_compile.AsyncCompile, "triton", note_kernel),
        patch.object(CompiledFxGraph, "__call__", call),
        patch.object(compiled, "_call_compiled", named),
    ):
        yield graphs


@contextmanager
def compiling() -> Iterator[list[Graph]]:
    """Compile what ``compiled.py`` compiles, and go on with the results of the function itself, on fake tensors."""

    def not_run(program: str, sources: dict[str, str], inputs: list[Any]) -> Any:
        raise NotRun

    with _noted(not_run) as graphs:
        call_compiled = compiled._call_compiled

        def compile_and_run_as_is(function: Any, rows: tuple[Tensor, ...]) -> Any:
            fake = next(part.fake_mode for part in rows)
            # Dynamo compiles nothing under a mode that is not its own.
            with contextlib.suppress(NotRun), _disable_current_modes(), fake:
                call_compiled(function, rows)
            with as_one_program():
                return function(*rows)

        with patch.object(compiled, "_call_compiled", compile_and_run_as_is):
            yield graphs


@contextmanager
def interpreting() -> Iterator[list[Graph]]:
    """Run on tensors of the CPU what would be compiled for the GPU, in Triton's interpreter.

    The process has ``TRITON_INTERPRET=1`` in its environment.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.multiprocessing.reductions import StorageWeakRef

    with tempfile.TemporaryDirectory(prefix="kernels_") as folder:
        load = functools.cache(lambda name, source: _interpretable(name, source, Path(folder)))
        real: dict[Any, Tensor] = {}

        def stands_for(part: Any) -> Any:
            return real[StorageWeakRef(part.untyped_storage())] if isinstance(part, Tensor) else part

        def as_real(output: Any) -> Any:
            """An output that is a view of an input was made of its twin, outside the program."""
            if not isinstance(output, FakeTensor):
                return output
            whole = real[StorageWeakRef(output.untyped_storage())]
            return whole.as_strided(output.size(), output.stride(), whole.storage_offset() + output.storage_offset())

        def run(program: str, sources: dict[str, str], inputs: list[Any]) -> Any:
            with _disable_current_modes():
                kernels = {name: load(name, source) for name, source in sources.items()}
                return _program(program, kernels)([stands_for(part) for part in inputs])

        with _noted(run) as graphs:
            call_compiled = compiled._call_compiled

            def interpret(function: Any, rows: tuple[Tensor, ...]) -> Any:
                real.clear()
                twins: dict[int, Tensor] = {}
                with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
                    for part in rows:
                        if id(part) not in twins:
                            size, stride = part.size(), part.stride()
                            twin = torch.empty_strided(size, stride, dtype=part.dtype, device="cuda")
                            twins[id(part)] = twin
                            real[StorageWeakRef(twin.untyped_storage())] = part
                    outputs = call_compiled(function, tuple(twins[id(part)] for part in rows))
                return tree_map(as_real, outputs)

            with patch.object(compiled, "_call_compiled", interpret):
                yield graphs


def _program(program: str, kernels: dict[str, Any]) -> Callable[[list[Any]], Any]:
    """The function ``call`` of a program, on tensors of the CPU."""
    program = re.sub(r"with torch\.cuda\._DeviceGuard\(\d+\):", "with contextlib.nullcontext():", program)
    program = re.sub(r"torch\.cuda\.set_device\(\d+\)", "pass", program)
    program = re.sub(r"get_raw_stream\(\d+\)", "0", program)
    program = re.sub(r"copy_if_misaligned\((\w+)\)", r"\1", program)
    program = program.replace("empty_strided_cuda(", "torch.empty_strided(").replace("device='cuda", "device='cpu")
    program = re.sub(r"torch\.empty_strided\((\(.*?\)), (\(.*?\)), (torch\.\w+)\)", _empty_strided, program)
    scope: dict[str, Any] = {"contextlib": contextlib, "__name__": "program"}
    exec(compile(program, "<program of Inductor>", "exec"), scope)
    scope.update(kernels)
    return scope["call"]


def _empty_strided(found: re.Match) -> str:
    size, stride, dtype = found.groups()
    return f"torch.empty_strided({size}, {stride}, dtype={dtype})"


def _loaded(name: str, source: str, folder: Path) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Interpreted:
    """A kernel that the interpreter runs, under the interface of Inductor's launcher."""

    def __init__(self, function: Any, signature: dict[str, str], kind: str) -> None:
        self._function, self._signature = function, signature
        blocks = {"persistent_reduction": 8, "reduction": 8}
        self._blocks = {"XBLOCK": blocks.get(kind, 1024), "YBLOCK": 8, "R0_BLOCK": 1024, "RBLOCK": 1024}

    def run(self, *args: Any, stream: Any = None) -> None:
        """One launch."""
        constants = {name: self._blocks[name] for name in self._signature if name in self._blocks}
        names = [name for name in self._signature if name not in constants]
        values = dict(zip(names, args, strict=True))
        sizes = [(values.get(f"{axis}numel", 1), constants.get(f"{axis.upper()}BLOCK", 1)) for axis in "xyz"]
        self._function[tuple(math.ceil(size / block) for size, block in sizes)](**values, **constants)


def _interpretable(name: str, source: str, folder: Path) -> _Interpreted:
    import torch._inductor.runtime.triton_heuristics as heuristics

    def decorator_of(kind: str) -> Callable[..., Any]:
        def decorator(*_: Any, triton_meta: dict[str, Any], **__: Any) -> Callable[[Any], _Interpreted]:
            return lambda function: _Interpreted(function, triton_meta["signature"], kind)

        return decorator

    # The interpreter has no libdevice; its own functions are numpy's.
    source = re.sub(r"\b(?:libdevice|tl_math)\.(exp|log|abs|sqrt)\(", r"tl.\1(", source)
    source = re.sub(r"libdevice\.isnan\((\w+)\)", r"(\1 != \1)", source)
    source = re.sub(r"libdevice\.isinf\((\w+)\)", r"(tl.abs(\1) == float('inf'))", source)
    kinds = ("persistent_reduction", "reduction", "pointwise")
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(heuristics, kind, decorator_of(kind)))
        return getattr(_loaded(name, source, folder), name)


def build(graph: Graph, only: Callable[[str], bool] = lambda name: True, num_configs: int = 1) -> list[Built]:
    """Each kernel of a graph as Triton and ptxas build it for sm_90, in its first ``num_configs`` configurations."""
    with tempfile.TemporaryDirectory(prefix="kernels_") as folder:
        built = []
        for name, source in graph.sources.items():
            if not only(name):
                continue
            tuner = getattr(_loaded(name, source, Path(folder)), name)
            for config in tuner.configs[:num_configs]:
                kernel = tuner._precompile_config(config).kernel
                built.append(_built(name, source, kernel, config, Path(folder)))
        return built


def _built(name: str, source: str, kernel: Any, config: Any, folder: Path) -> Built:
    ptx = kernel.asm["ptx"]
    code, usage = _machine_code(kernel.asm["cubin"], folder)
    signature = dict(re.findall(r"'(\w+)': '(\S+?)'", re.search(r"'signature': \{(.*?)\}", source).group(1)))  # type: ignore[union-attr]
    blocks = [value for block, value in config.kwargs.items() if block.endswith("BLOCK")]
    blocks += [int(size) for size in re.findall(r"R0_BLOCK: tl\.constexpr = (\d+)", source)]
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = map(int, found.groups())
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", code, re.M)
    names = [re.sub(r"^@!?U?P\w+\s+", "", text).split()[0] for text in instructions]
    useful = [one for one in names if one.split(".")[0] not in ("NOP", "BRA", "EXIT")]
    backwards = [text for text in instructions if re.search(r"\bBRA(\.\w+)* ", text)]
    return Built(
        name=name,
        load_bytes=_widths(ptx, "ld"),
        store_bytes=_widths(ptx, "st"),
        instructions=len(useful),
        elements_per_thread=max(1, math.prod(blocks) // (32 * config.num_warps)),
        has_loop=len(backwards) > 1,
        registers=registers,
        spills=stack + sum(one.startswith(("LDL", "STL")) for one in names),
        divides=bool(re.search(r"\b(div|rem)\.[su]64", ptx)),
        index_type={kind for size, kind in signature.items() if re.fullmatch(r"[xyr]\d?_?numel|ks\d+", size)},
    )


def _widths(ptx: str, kind: str) -> Counter[int]:
    """Bytes -> number of instructions that load (``ld``) or store (``st``) as much of global memory."""
    widths: Counter[int] = Counter()
    for vector, bits in re.findall(rf"{kind}\.global[\w.:]*?(?:\.v(\d))?\.[bsuf](\d+)\b", ptx):
        widths[int(vector or 1) * int(bits) // 8] += 1
    return widths


def _machine_code(cubin: bytes, folder: Path) -> tuple[str, str]:
    """Machine code and use of registers and memory, as NVIDIA's tool prints them (it comes with Triton)."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    return tuple(  # type: ignore[return-value]
        subprocess.run([tool, flag, path], capture_output=True, text=True, check=True).stdout
        for flag in ("-sass", "-res-usage")
    )
