"""What a step of Mix-CPT costs beside a step of plain continual pre-training, on paper: predict a run before paying it.

    python benchmarks/step/cost_model.py
    python benchmarks/step/cost_model.py --models llama-3-8b --gpus 8 64 --seq-length 8192 --matmul-efficiency 0.45

Nothing here is measured. Counted are, per token: matrix products (a multiply-add is 2 operations; attention is causal),
bytes between tensor-parallel ranks (sequence parallel: 4 collectives a layer forward, 6 backward, where inputs are
gathered again), bytes between pipeline stages (the teacher's hidden states travel forward only). A step is what the
products take at the given efficiency, plus the tensor-parallel traffic (taken as not hidden), stretched by the
pipeline's bubble (stages - 1) / microbatches; traffic between stages and between data-parallel ranks is taken as hidden
behind it. Memory is for bfloat16 with float32 gradients, a distributed optimizer and no recomputation.
"""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A Llama-3 shape."""

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int = 128_256

    @property
    def layer_params(self) -> int:
        """Of one layer's matrices."""
        kv_size = self.hidden_size * self.num_kv_heads // self.num_heads
        return self.hidden_size * (2 * self.hidden_size + 2 * kv_size + 3 * self.ffn_size)

    @property
    def params(self) -> int:
        """Of the whole model, embedding and output weight untied, norms left out."""
        return self.num_layers * self.layer_params + 2 * self.vocab_size * self.hidden_size

    def forward_flops(self, seq_length: int) -> float:
        """Of one token."""
        products = 2 * (self.num_layers * self.layer_params + self.vocab_size * self.hidden_size)
        return products + self.num_layers * 2 * seq_length * self.hidden_size


@dataclass(frozen=True)
class Layout:
    """Ranks per copy of the model and copies."""

    tensor: int
    pipeline: int
    data: int


@dataclass(frozen=True)
class Machine:
    """What a GPU gives in practice: operations and bytes per second."""

    flops: float
    tensor_bandwidth: float


@dataclass(frozen=True)
class Step:
    """Of one step: seconds, bubble as a share of the work, and per token and rank the traffic; memory per rank."""

    seconds: float
    bubble: float
    tensor_bytes: float
    stage_bytes: float
    memory: float


MODELS = {
    "llama-3-8b": Model(32, 4096, 14336, 32, 8),
    "llama-3-70b": Model(80, 8192, 28672, 64, 8),
}
# Copies of the model must divide the global batch of 1,920 sequences.
LAYOUTS = {
    "llama-3-8b": {8: Layout(2, 1, 4), 64: Layout(2, 1, 32), 512: Layout(2, 2, 128)},
    "llama-3-70b": {32: Layout(8, 4, 1), 64: Layout(8, 4, 2), 512: Layout(8, 4, 16)},
}


def plan_step(
    model: Model, layout: Layout, machine: Machine, *, seq_length: int, num_sequences: int, distilled: float
) -> Step:
    """One step over ``num_sequences``, of which the share ``distilled`` also passes through the teacher."""
    passes = 3 + distilled
    microbatches = num_sequences // layout.data
    tokens = microbatches * seq_length
    ranks = layout.tensor * layout.pipeline
    unit = (layout.tensor - 1) / layout.tensor * model.hidden_size * 2
    tensor_bytes = unit * (10 + 4 * distilled) * model.num_layers / layout.pipeline
    bubble = (layout.pipeline - 1) / microbatches
    work = tokens * model.forward_flops(seq_length) * passes / (ranks * machine.flops)
    traffic = tokens * tensor_bytes / machine.tensor_bandwidth
    # Every message between stages has room for the teacher's half, if any sample is distilled.
    halves = 3 if distilled else 2
    stage_bytes = halves * model.hidden_size * 2 / layout.tensor if layout.pipeline > 1 else 0.0
    return Step(
        (work + traffic) * (1 + bubble),
        bubble,
        tensor_bytes,
        stage_bytes,
        memory_per_rank(model, layout, seq_length, microbatches, has_teacher=distilled > 0),
    )


def memory_per_rank(model: Model, layout: Layout, seq_length: int, microbatches: int, *, has_teacher: bool) -> float:
    """Bytes: weights, gradients, optimizer, activations (34 s h bytes a layer, Korthikanti et al. 2022) and logits."""
    params = model.params / (layout.tensor * layout.pipeline)
    weights = params * (2 + 4 + 12 / layout.data + 2 * has_teacher)
    layers_in_flight = model.num_layers / layout.pipeline * min(layout.pipeline, microbatches)
    activations = 34 * seq_length * model.hidden_size / layout.tensor * layers_in_flight
    logits = seq_length * model.vocab_size / layout.tensor * 2 * (1 + has_teacher)
    return weights + activations + logits


def main() -> None:
    """Print a row for each model and number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--gpus", nargs="+", type=int, help="those of the table that have a layout; default: all")
    parser.add_argument("--seq-length", type=int, default=2048)
    parser.add_argument("--num-sequences", type=int, default=1920, help="the global batch")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of one GPU, bfloat16; H100 SXM")
    parser.add_argument("--matmul-efficiency", type=float, default=0.55, help="share of the peak that products reach")
    parser.add_argument("--tensor-gb-per-s", type=float, default=350.0, help="per GPU and direction, within a node")
    options = parser.parse_args()
    machine = Machine(options.peak_tflops * 1e12 * options.matmul_efficiency, options.tensor_gb_per_s * 1e9)
    print("| model | GPUs | TP x PP x DP | s a step, plain | Mix-CPT | ratio | half distilled | bubble | "
          "TP bytes a token, plain and Mix-CPT | between stages | GiB a rank, plain and Mix-CPT |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.models:
        for num_gpus, layout in LAYOUTS[name].items():
            if options.gpus is None or num_gpus in options.gpus:
                print(table_row(name, num_gpus, layout, machine, options.seq_length, options.num_sequences))


def table_row(name: str, num_gpus: int, layout: Layout, machine: Machine, seq_length: int, num_sequences: int) -> str:
    """One line of the table, in Markdown."""
    plain, half, full = (
        plan_step(
            MODELS[name], layout, machine, seq_length=seq_length, num_sequences=num_sequences, distilled=distilled
        )
        for distilled in (0.0, 0.5, 1.0)
    )
    return (
        f"| {name} | {num_gpus} | {layout.tensor} x {layout.pipeline} x {layout.data} | {plain.seconds:.1f} | "
        f"{full.seconds:.1f} | {full.seconds / plain.seconds:.3f} | {half.seconds / plain.seconds:.3f} | "
        f"{full.bubble:.1%} | {plain.tensor_bytes / 1e6:.2f} and {full.tensor_bytes / 1e6:.2f} MB | "
        f"{plain.stage_bytes / 1e3:.1f} and {full.stage_bytes / 1e3:.1f} kB | "
        f"{plain.memory / 2**30:.0f} and {full.memory / 2**30:.0f} |"
    )


if __name__ == "__main__":
    main()
