"""Time and memory of the fused linear loss beside its matrix products alone and beside the unfused loss; CPU, one rank.

    python benchmarks/loss/fused_linear.py
    python benchmarks/loss/fused_linear.py --hidden-sizes 64 --vocab-sizes 49152 --chunk-tokens 64 256
    python benchmarks/loss/fused_linear.py --peers cache/loss-peers     # beside Liger's chunked loss

The matrix products are those that any implementation needs: both models' logits forward, and the gradients of the
student's hidden states and weight backward, each over all tokens at once, into memory that is already there. Times are
medians of ratios of neighbouring runs, first on the wall clock, then in processor time; memory is the growth of the
process's peak, gradients included.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loss import peers  # noqa: E402
from benchmarks.loss.measure import Measured, measure  # noqa: E402
from megatron_mixcpt.losses.fused_linear import Projection, fused_linear_mixcpt_loss  # noqa: E402
from megatron_mixcpt.losses.lssd import vocab_parallel_mixcpt_loss  # noqa: E402
from megatron_mixcpt.objective import Objective  # noqa: E402

ALPHA = 0.8


def main() -> None:
    """Parse the flags and print one line per cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[49_152, 128_256])
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[64, 576, 2048])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--chunk-tokens", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where other libraries are, or are fetched to")
    args = parser.parse_args()
    if args.peers:
        peers.install(args.peers)
    torch.set_num_threads(1)
    print(f"{args.tokens} tokens, torch {torch.__version__}, one thread")
    for dtype in args.dtypes:
        for vocab_size in args.vocab_sizes:
            for hidden_size in args.hidden_sizes:
                measure_cell(args.tokens, vocab_size, hidden_size, getattr(torch, dtype), args)


def measure_cell(num_tokens: int, vocab_size: int, hidden_size: int, dtype: torch.dtype, args) -> None:
    """Run the matrix products and the losses in turn and print their ratios."""
    generator = torch.Generator().manual_seed(0)
    hidden, teacher_hidden = torch.randn(2, num_tokens, 1, hidden_size, generator=generator).to(dtype).unbind(0)
    weight = (torch.randn(vocab_size, hidden_size, generator=generator) / hidden_size**0.5).to(dtype)
    teacher_weight = weight.clone()
    labels = torch.randint(0, vocab_size, (num_tokens, 1), generator=generator)
    hidden.requires_grad_(), weight.requires_grad_()
    inputs = hidden, weight, teacher_hidden, teacher_weight, labels
    buffers = [torch.zeros(num_tokens, vocab_size, dtype=dtype) for _ in range(2)]
    buffers += [torch.zeros_like(hidden[:, 0]), torch.zeros_like(weight)]
    steps = {"products": lambda: products(*inputs[:4], *buffers), "unfused": lambda: unfused(*inputs)}
    for chunk in args.chunk_tokens:
        steps[f"chunks of {chunk}"] = lambda chunk=chunk: fused(*inputs, chunk)
    if args.peers:
        liger = peers.liger(args.peers, ALPHA, max(args.chunk_tokens))
        steps["Liger"] = lambda: torch.autograd.grad(
            liger(hidden[:, 0], weight, teacher_hidden[:, 0], teacher_weight, labels[:, 0]), (hidden, weight)
        )
    runs = run_in_turn(steps, args.repeats)
    name = str(dtype).removeprefix("torch.")
    seconds = statistics.median(run.wall_s for run in runs["products"])
    print(f"{name} vocab {vocab_size} hidden {hidden_size}: products {seconds:.2f} s", end="")
    for step in list(runs)[1:]:
        wall, cpu = (ratio(runs[step], runs["products"], field) for field in ("wall_s", "cpu_s"))
        growth = statistics.median(run.bytes for run in runs[step]) / 2**20
        print(f" | {step} {wall:.2f} {cpu:.2f} {growth:.0f} MiB", end="")
    print(flush=True)


def run_in_turn(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[Measured]]:
    """Measure every step ``repeats`` times, after once to warm up, each round in the same order."""
    runs: dict[str, list[Measured]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            measured = measure(step)
            if repeat:
                runs[name].append(measured)
    return runs


def ratio(ours: list[Measured], theirs: list[Measured], field: str) -> float:
    """Median over neighbouring runs of ours over theirs."""
    return statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def products(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    logits: Tensor,
    teacher_logits: Tensor,
    grad_hidden: Tensor,
    grad_weight: Tensor,
) -> None:
    """The four matrix products, into memory that is there."""
    torch.mm(teacher_hidden[:, 0], teacher_weight.t(), out=teacher_logits)
    torch.mm(hidden[:, 0], weight.t(), out=logits)
    torch.mm(logits, weight, out=grad_hidden)
    torch.mm(logits.t(), hidden[:, 0], out=grad_weight)


def unfused(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor) -> None:
    """Forward and backward through all logits."""
    logits = hidden @ weight.t()
    teacher_logits = teacher_hidden @ teacher_weight.t()
    loss = vocab_parallel_mixcpt_loss(logits, teacher_logits, labels, alpha=ALPHA, tp_group=None, inplace=True).loss
    torch.autograd.grad(loss.sum(), (hidden, weight))


def fused(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, labels: Tensor, chunk: int
) -> None:
    """Forward and backward through a chunk of logits at a time."""
    student, teacher = Projection(hidden, weight), Projection(teacher_hidden, teacher_weight)
    result = fused_linear_mixcpt_loss(
        student, teacher, labels, Objective(alpha=ALPHA), tp_group=None, chunk_tokens=chunk
    )
    torch.autograd.grad(result.loss_sum, (hidden, weight))


if __name__ == "__main__":
    main()
