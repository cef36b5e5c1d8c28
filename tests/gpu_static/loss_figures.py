"""What is counted of the losses' kernels for an H100: ``python -m tests.gpu_static.loss_figures`` prints it.

Nothing runs on a device, so there are no times here: numbers of kernels and bytes, and what ptxas made of the kernels.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.gpu_static.cases import Shape, loss_function, mixcpt
from tests.gpu_static.fake_h100 import in_own_process, on_device
from tests.gpu_static.kernels import Built, Graph, build, compiling
from tests.gpu_static.watch import Watch

TOKENS = 2048
LLAMA = Shape(TOKENS, 128_256, 128_256)
PADDED = Shape(TOKENS, 152_064, 151_936)
FLOAT32 = Shape(TOKENS, 49_152, 49_152, torch.float32)

# Token counts over which the rows stay open; the last two have more than 2^31 logits.
TOKEN_COUNTS = (2048, 512, 1024, 2047, 8192, 17_408, 32_768)


@dataclass
class Figures:
    """Of one case."""

    graphs: list[Graph]
    watch: Watch
    built: dict[str, list[Built]]
    """Function -> its large kernels, or all."""

    @property
    def launches(self) -> int:
        """Kernels started in all: those of compiled programs, and the operators between them."""
        return sum(graph.launches for graph in self.graphs) + sum(self.watch.kernels.values())

    def kernels(self, function: str) -> int:
        """Kernels of one compiled function."""
        return sum(graph.launches for graph in self.graphs if graph.function == function)


def compiled_case(case: Callable[[], None], built: Callable[[str], bool]) -> Figures:
    """Compile a case; build those of its kernels whose functions are wanted."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    torch._dynamo.reset()
    with compiling() as graphs, on_device(FakeTensorMode(shape_env=ShapeEnv())) as watch:
        case()
    return Figures(graphs, watch, {graph.function: build(graph) for graph in graphs if built(graph.function)})


def _passes(function: str) -> bool:
    return function.startswith(("_divergence_reader", "_gradient_writer", "_exponential", "_cross_entropy"))


def figures(all_kernels: bool) -> dict[str, Figures]:
    """Each case by its name, with its passes over the logits built, or all its kernels; for :func:`in_own_process`."""
    return {
        "lssd": compiled_case(lambda: mixcpt(LLAMA), lambda function: all_kernels or _passes(function)),
        "padded": compiled_case(lambda: mixcpt(PADDED), _passes),
        "float32": compiled_case(lambda: mixcpt(FLOAT32), _passes),
        "cross-entropy": compiled_case(lambda: mixcpt(LLAMA, teacher=False), _passes),
        "loss function": compiled_case(loss_function, lambda function: all_kernels),
    }


def compilations() -> dict[str, list[tuple[int, set[str]]]]:
    """Function -> for each compilation over ``TOKEN_COUNTS``, the token count and the types of its sizes."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    found: dict[str, list[tuple[int, set[str]]]] = {}
    with compiling() as graphs:
        for tokens in TOKEN_COUNTS:
            before = len(graphs)
            with on_device(FakeTensorMode(shape_env=ShapeEnv())):
                mixcpt(LLAMA._replace(tokens=tokens))
            for graph in graphs[before:]:
                sizes = {kind for source in graph.sources.values() for kind in _numel_types(source)}
                found.setdefault(graph.function, []).append((tokens, sizes))
    return found


def _numel_types(source: str) -> list[str]:
    return re.findall(r"'xnumel': '(i\d+)'", source)


def main() -> None:
    """Print the table."""
    results: dict[str, Any] = in_own_process(figures, True, compiles=True, timeout_s=1200)
    for name, result in results.items():
        programs = ", ".join(f"{graph.function} {graph.launches}" for graph in result.graphs)
        print(f"{name}: {result.launches} kernels ({programs}; uncompiled {dict(result.watch.kernels)})")
        for kernels in result.built.values():
            for kernel in kernels:
                per_element = f"{kernel.instructions / kernel.elements_per_thread:.0f}"
                print(
                    f"  {kernel.name[:60]:60} loads {dict(kernel.load_bytes)} stores {dict(kernel.store_bytes)} B, "
                    f"{per_element} instructions per element, {kernel.registers} registers, spills {kernel.spills}"
                )
    for function, compiled in in_own_process(compilations, compiles=True, timeout_s=1200).items():
        print(f"{function}: {len(compiled)} compilations over {len(TOKEN_COUNTS)} token counts: {compiled}")


if __name__ == "__main__":
    # As a module that another process can import by its name.
    from tests.gpu_static import loss_figures

    loss_figures.main()
