"""Time, memory and accuracy of the Mix-CPT loss beside the engine's cross-entropy, on a CPU, one thread per rank.

    python benchmarks/loss/compare.py                            # every cell of docs/evidence/performance.md, minutes
    python benchmarks/loss/compare.py --vocab-sizes 49152 --dtypes float32 --tensor-parallel 1
    python benchmarks/loss/compare.py --peers cache/loss-peers   # beside other libraries' losses too

Each cell runs forward and backward of both losses alternately on the same logits and prints the median of the ratios of
neighbouring runs: a busy machine slows both. Memory is the growth of the process's peak over what it held before, in
float32 logits shards. Errors are against the dense float64 reference of the tests, on the first rows.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loss import peers  # noqa: E402
from benchmarks.loss.measure import Measured, measure  # noqa: E402
from megatron_mixcpt.losses.lssd import vocab_parallel_mixcpt_loss  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402
from tests.unit.losses.dense_reference import expected_mixcpt_loss  # noqa: E402

ALPHA = 0.8
REFERENCE_ROWS = 32


def main() -> None:
    """Parse the flags and print one line per cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[49_152, 128_256, 152_064])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--tensor-parallel", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where other libraries are, or are fetched to")
    args = parser.parse_args()
    if args.peers:
        peers.install(args.peers)
    # The ranks import the engine, which warns of every optional package that is missing.
    os.environ["PYTHONWARNINGS"] = "ignore"
    print(f"{args.tokens} tokens, torch {torch.__version__}, one thread per rank; time as a ratio to the engine's")
    print(
        "dtype     vocab   TP | time (spread)        processor | in place (spread)    processor | memory  in place | "
        "engine s  memory | loss error, gradient error, NTP alone (processor)"
    )
    for dtype in args.dtypes:
        for vocab_size in args.vocab_sizes:
            for world_size in args.tensor_parallel:
                cell = args.tokens, vocab_size, dtype, args.repeats, args.peers
                run_distributed(measure_cell, world_size, *cell, timeout_s=1800.0, cpu_emulation=bool(args.peers))


def measure_cell(num_tokens: int, vocab_size: int, dtype_name: str, repeats: int, peers_folder: Path | None) -> None:
    """On every rank: measure one cell; rank 0 prints it."""
    dtype, columns = getattr(torch, dtype_name), vocab_size // dist.get_world_size()
    generator = torch.Generator().manual_seed(dist.get_rank())
    kept = (torch.randn(num_tokens, columns, generator=generator) * 3).to(dtype)
    teacher = (kept + torch.randn(num_tokens, columns, generator=generator)).to(dtype)
    labels = torch.randint(0, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(7))
    logits = kept.clone()
    losses = {
        "engine": engine_loss,
        "ours": lambda *inputs: mixcpt_loss(*inputs, inplace=False),
        "in place": lambda *inputs: mixcpt_loss(*inputs, inplace=True),
        "ntp": lambda student, _, labels: mixcpt_loss(student, None, labels, inplace=True),
    }
    if peers_folder:
        losses |= peers.peer_losses(peers_folder, ALPHA, engine_loss)
    runs: dict[str, list[Measured]] = {name: [] for name in losses}
    for repeat in range(repeats + 1):
        for name, loss in losses.items():
            logits.copy_(kept)
            step = partial(forward_backward, loss, logits, teacher, labels)
            measured = measure(step, dist.barrier)
            if repeat:
                runs[name].append(measured)
    errors = errors_against_float64(kept, teacher, labels)
    if dist.get_rank() == 0:
        print_cell(f"{dtype_name:9} {vocab_size:6} {dist.get_world_size():3}", runs, num_tokens * columns * 4, errors)


def engine_loss(logits: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """The engine's loss per token; overwrites float32 logits."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy  # after the CPU emulation, where it is used

    return vocab_parallel_cross_entropy(logits.unsqueeze(1), labels.unsqueeze(1), 0.0, dist.group.WORLD).squeeze(1)


def mixcpt_loss(logits: Tensor, teacher: Tensor | None, labels: Tensor, inplace: bool) -> Tensor:
    """Our loss per token."""
    options = {"alpha": ALPHA, "tp_group": dist.group.WORLD, "inplace": inplace}
    return vocab_parallel_mixcpt_loss(logits, teacher, labels, **options).loss


def forward_backward(loss: Callable[..., Tensor], logits: Tensor, teacher: Tensor, labels: Tensor) -> None:
    """One forward and backward of the mean loss."""
    leaf = logits.detach().requires_grad_()
    torch.autograd.grad(loss(leaf, teacher, labels).mean(), leaf)


def errors_against_float64(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[float, float]:
    """Largest error of loss and gradient on the first rows; for bfloat16 the gradient's over that of rounding alone."""
    whole = [gather_columns(part[:REFERENCE_ROWS]) for part in (student, teacher)]
    labels = labels[:REFERENCE_ROWS]
    expected = expected_mixcpt_loss(*whole, labels, ALPHA)
    # The same rows repeated, so that they take the path that many rows take.
    leaf = student[:REFERENCE_ROWS].repeat(8, 1).requires_grad_()
    loss = mixcpt_loss(leaf, teacher[:REFERENCE_ROWS].repeat(8, 1), labels.repeat(8), inplace=False)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    gradient = gather_columns(gradient[:REFERENCE_ROWS]).double()
    loss_error = (loss[:REFERENCE_ROWS].double() - expected.loss).abs().max().item()
    if student.dtype == torch.float32:
        return loss_error, (gradient - expected.gradient).abs().max().item()
    rounding = (expected.gradient.to(student.dtype).double() - expected.gradient).norm()
    return loss_error, ((gradient - expected.gradient).norm() / rounding).item()


def gather_columns(shard: Tensor) -> Tensor:
    """All ranks' columns side by side."""
    shards = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
    dist.all_gather(shards, shard.contiguous())
    return torch.cat(shards, dim=1)


def print_cell(cell: str, runs: dict[str, list[Measured]], shard_bytes: int, errors: tuple[float, float]) -> None:
    """One line: medians of the ratios to the engine's neighbouring runs, quartiles, memory in shards, errors."""

    def ratios(name: str, field: str) -> list[float]:
        pairs = zip(runs[name], runs["engine"], strict=True)
        return sorted(getattr(ours, field) / getattr(engine, field) for ours, engine in pairs)

    def time_text(name: str) -> str:
        wall = ratios(name, "wall_s")
        spread = f"({wall[len(wall) // 4]:.2f} to {wall[-1 - len(wall) // 4]:.2f})"
        return f"{statistics.median(wall):.2f} {spread}  {statistics.median(ratios(name, 'cpu_s')):.2f}"

    memory = {name: statistics.median(run.bytes for run in runs[name]) / shard_bytes for name in runs}
    engine = statistics.median(run.wall_s for run in runs["engine"])
    ntp = statistics.median(ratios("ntp", "cpu_s"))
    print(
        f"{cell} | {time_text('ours')} | {time_text('in place')} | {memory['ours']:.3f} {memory['in place']:.3f} | "
        f"{engine:.3f} {memory['engine']:.3f} | {errors[0]:.1e} {errors[1]:.3g} {ntp:.2f}",
        flush=True,
    )
    for name in list(runs)[4:]:
        print(f"{'':{len(cell)}} | {name}: {time_text(name)}, memory {memory[name]:.2f}", flush=True)


if __name__ == "__main__":
    main()
