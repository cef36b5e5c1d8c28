"""The experts of one layer, forward and backward: our grouped products beside the engine's loop over experts.

    OMP_NUM_THREADS=1 python benchmarks/moe/grouped_experts.py
    OMP_NUM_THREADS=1 python benchmarks/moe/grouped_experts.py --experts 8 --tokens 4096 --hidden 1024 --inner 512

Both are built from the engine's configuration and get the same weights, rows and router weights; the rows are spread
at random, and one expert gets none. Runs alternate, so that other work on the machine meets both alike; the median of
each is shown, and the ratio of the two. `off` is the largest difference of output and gradients, relative to the
largest value of each. Where there is a GPU it runs there, else on the CPU.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_mixcpt import cpu_emulation  # noqa: E402

cpu_emulation.install()

import torch  # noqa: E402
from megatron.core.models.backends import LocalSpecProvider  # noqa: E402
from megatron.core.transformer.moe.moe_utils import get_default_pg_collection  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from megatron_mixcpt.inference.parallel_groups import start_ranks  # noqa: E402
from megatron_mixcpt.models.experts import GroupedExperts  # noqa: E402
from megatron_mixcpt.models.grouped_linear import takes_grouped_mm  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADER = f"{'experts':>7} {'dtype':>9} {'kernel':>10} {'loop ms':>9} {'grouped ms':>11} {'ratio':>6} {'off':>8}"


def main() -> None:
    """Print a row for each number of experts and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32, 128], help="of the layer")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--tokens", type=int, default=2048, help="rows that the experts get in all (default 2048)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden size (default 256)")
    parser.add_argument("--inner", type=int, default=128, help="columns of an expert (default 128)")
    parser.add_argument("--repeats", type=int, default=9, help="of each measurement (default 9)")
    options = parser.parse_args()
    start_ranks()
    print(HEADER)
    for num_experts in options.experts:
        for dtype in options.dtypes:
            print(measured(num_experts, dtype, options), flush=True)


def measured(num_experts: int, dtype: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    loop, grouped = (build(kind, num_experts, DTYPES[dtype], options) for kind in ("loop", "grouped"))
    share_weights(loop, grouped)
    inputs = make_inputs(num_experts, DTYPES[dtype], options, next(grouped.parameters()).device)
    off = difference(results(loop, inputs), results(grouped, inputs))
    seconds: dict[nn.Module, list[float]] = {loop: [], grouped: []}
    for _ in range(options.repeats):
        for experts, found in seconds.items():
            found.append(timed(experts, inputs))
    slow, fast = (1e3 * statistics.median(found) for found in seconds.values())
    kernel = "grouped_mm" if takes_grouped_mm(inputs[0], grouped.linear_fc1.weight) else "loop"
    return f"{num_experts:7} {dtype:>9} {kernel:>10} {slow:9.1f} {fast:11.1f} {slow / fast:6.2f} {off:8.1e}"


def build(kind: str, num_experts: int, dtype: torch.dtype, options: argparse.Namespace) -> Any:
    """The experts of one layer, ``loop`` or ``grouped``."""
    config = TransformerConfig(
        num_layers=1,
        hidden_size=options.hidden,
        num_attention_heads=4,
        num_moe_experts=num_experts,
        moe_ffn_hidden_size=options.inner,
        gated_linear_unit=True,
        activation_func=nn.functional.silu,
        bias_activation_fusion=True,
        add_bias_linear=False,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        moe_router_dtype="fp32",
        perform_initialization=False,
    )
    builder = GroupedExperts if kind == "grouped" else LocalSpecProvider().grouped_mlp_modules(True)
    return builder(num_experts, config, pg_collection=get_default_pg_collection())


def share_weights(loop: Any, grouped: Any) -> None:
    """Random weights, the same for both."""
    torch.manual_seed(0)
    for layer in (grouped.linear_fc1, grouped.linear_fc2):
        layer.weight.data.normal_(std=0.05)
    for index, expert in enumerate(loop.local_experts):
        for name in ("linear_fc1", "linear_fc2"):
            getattr(expert, name).weight.data.copy_(getattr(grouped, name).weight[index])


def make_inputs(
    num_experts: int, dtype: torch.dtype, options: argparse.Namespace, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [t, h], how many each expert gets, on the host as from the dispatcher, and their router weights [t]."""
    torch.manual_seed(1)
    chosen = torch.randint(0, num_experts - 1, (options.tokens,))
    rows = torch.randn(options.tokens, options.hidden, dtype=dtype, device=device, requires_grad=True)
    weights = torch.rand(options.tokens, device=device, requires_grad=True)
    return rows, torch.bincount(chosen, minlength=num_experts), weights


def results(experts: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    """Output, and gradients of rows, router weights and both layers [e, n, k]."""
    output = step(experts, inputs)
    layers = getattr(experts, "local_experts", [experts])
    grads = [
        torch.cat([getattr(x, name).weight.grad.view(-1) for x in layers]) for name in ("linear_fc1", "linear_fc2")
    ]
    return [output, inputs[0].grad, inputs[2].grad, *grads]


def step(experts: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Forward and backward, from no gradients."""
    for tensor in (*experts.parameters(), inputs[0], inputs[2]):
        tensor.grad = None
    output, _ = experts(*inputs)
    output.float().square().sum().backward()
    return output.detach()


def timed(experts: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Seconds of a step."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step(experts, inputs)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest, relative to the largest value of each tensor."""
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
