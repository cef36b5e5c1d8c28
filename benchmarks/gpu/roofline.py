"""What the loss and a step must cost: bytes and operations, and the time they take at a card's ceilings.

    python benchmarks/gpu/roofline.py
    python benchmarks/gpu/roofline.py --copy-tb-per-s 4.3 --tflops 790      # an H200, as measured

Counted, not measured. The loss moves each model's logits once forward, reads both again backward and writes the
gradient: 5 numbers a logit, 10 bytes in bfloat16. A step is its matrix products (a multiply-add is 2 operations,
attention is causal): forward, twice that backward, and with a teacher one forward more.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.step.cost_model import forward_flops  # noqa: E402
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape  # noqa: E402

LLAMA_1B = ModelShape(16, 2048, 8192, 32, 8, 128_256, 64, 131_072, tied=True)
SMOLLM2 = ModelShape(30, 576, 1536, 9, 3, 49_152, 64, 8192, tied=True)
SHAPES = {"llama-3.2-1b": LLAMA_1B, "llama-3-8b": PRESETS["llama-3-8b"], "llama-3-70b": PRESETS["llama-3-70b"]}
PEAK_FLOPS = 989e12
"""Of an H100 SXM in bfloat16, as its data sheet says: what an efficiency is a share of."""


@dataclass(frozen=True)
class Ceilings:
    """Of a card, as measured: bytes read plus bytes written, and operations, per second."""

    copy: float = 3.0e12
    flops: float = 798e12


def loss_bytes(num_tokens: int, num_columns: int, bytes_per_number: int = 2) -> tuple[int, int]:
    """The fewest bytes of the loss forward (both logits read) and backward (both read, the gradient written)."""
    numbers = num_tokens * num_columns
    return 2 * numbers * bytes_per_number, 3 * numbers * bytes_per_number


def loss_floor_ms(num_tokens: int, num_columns: int, ceilings: Ceilings, bytes_per_number: int = 2) -> float:
    """Milliseconds of forward and backward at the card's copy rate."""
    return sum(loss_bytes(num_tokens, num_columns, bytes_per_number)) / ceilings.copy * 1e3


def step_flops(model: ModelShape, num_tokens: int, seq_length: int, distilled: float) -> float:
    """Of the matrix products of these tokens, of which the share ``distilled`` also passes through the teacher."""
    return num_tokens * forward_flops(model, seq_length) * (3 + distilled)


def fused_linear_flops(num_tokens: int, hidden_size: int, num_columns: int) -> float:
    """Both models' logits, and the gradients of hidden states and weight: four products."""
    return 4 * 2 * num_tokens * hidden_size * num_columns


def main() -> None:
    """Print both tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copy-tb-per-s", type=float, default=3.0)
    parser.add_argument("--tflops", type=float, default=798.0)
    parser.add_argument("--tokens", type=int, default=2048, help="of a microbatch")
    options = parser.parse_args()
    ceilings = Ceilings(options.copy_tb_per_s * 1e12, options.tflops * 1e12)
    print("| vocabulary | loss forward, ms | backward | both | both at 1.4 x |\n|---|---|---|---|---|")
    for columns in (49_152, 128_256, 152_064):
        forward, backward = (part / ceilings.copy * 1e3 for part in loss_bytes(options.tokens, columns))
        whole = loss_floor_ms(options.tokens, columns, ceilings)
        print(f"| {columns:,} | {forward:.2f} | {backward:.2f} | {whole:.2f} | {1.4 * whole:.2f} |")
    print("\n| model | TFLOP a microbatch, none and lssd | lssd to none | lssd, ms at the product's rate | at 55% "
          "| at 45% | at 35% | loss's floor, ms and share at 45% |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name, shape in SHAPES.items():
        none, lssd = (step_flops(shape, options.tokens, options.tokens, distilled=share) for share in (0.0, 1.0))
        times = [lssd / rate * 1e3 for rate in (ceilings.flops, *(share * PEAK_FLOPS for share in (0.55, 0.45, 0.35)))]
        floor = loss_floor_ms(options.tokens, shape.vocab_size, ceilings)
        shown = " | ".join(f"{time:,.0f}" for time in times)
        ratio = lssd / none
        print(f"| {name} | {none / 1e12:.1f} and {lssd / 1e12:.1f} | {ratio:.3f} | {shown} | {floor:.2f}, "
              f"{floor / times[2]:.2%} |")  # fmt: skip


if __name__ == "__main__":
    main()
