"""What a step of Mix-CPT costs beside a step of plain continual pre-training, on paper: predict a run before paying it.

    python benchmarks/step/cost_model.py
    python benchmarks/step/cost_model.py --models llama-3-8b --gpus 8 64 --seq-length 8192 --matmul-efficiency 0.45

Nothing here is measured. Counted are, per token: matrix products (a multiply-add is 2 operations; attention is causal),
bytes between tensor-parallel ranks (sequence parallel: 4 collectives a layer forward, 6 backward, where inputs are
gathered again), bytes between pipeline stages (the teacher's hidden states travel forward only). A step is what the
products take at the given efficiency, plus the tensor-parallel traffic (taken as not hidden), stretched by the
pipeline's bubble (stages - 1) / microbatches; traffic between stages and between data-parallel ranks is taken as hidden
behind it. Memory is tools/plan.py's, with sequence parallelism, a distributed optimizer and no recomputation.
"""

import argparse
from dataclasses import dataclass, replace

from megatron_mixcpt.objective import Objective
from megatron_mixcpt.planning.advice import peak_bytes
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape


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


def layout_of(tensor: int, pipeline: int, data: int) -> Layout:
    """Ranks per copy of the model and copies, as this page has them."""
    return Layout(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        num_gpus=tensor * pipeline * data,
        sequence_parallel=tensor > 1,
        global_batch_size=1920,
        bf16=True,
        use_distributed_optimizer=True,
    )


# Copies of the model must divide the global batch of 1,920 sequences.
LAYOUTS = {
    "llama-3-8b": {8: layout_of(2, 1, 4), 64: layout_of(2, 1, 32), 512: layout_of(2, 2, 128)},
    "llama-3-70b": {32: layout_of(8, 4, 1), 64: layout_of(8, 4, 2), 512: layout_of(8, 4, 16)},
}


def forward_flops(model: ModelShape, seq_length: int) -> float:
    """Of one token."""
    products = 2 * (sum(layer.divided for layer in model.layers) + model.vocab_size * model.hidden_size)
    return products + model.num_layers * 2 * seq_length * model.query_size


def plan_step(model: ModelShape, layout: Layout, machine: Machine, *, distilled: float) -> Step:
    """One step, of whose sequences the share ``distilled`` also passes through the teacher."""
    layout = replace(layout, objective=Objective(distillation="lssd" if distilled else "none"))
    run = PlannedRun.of(model, layout)
    tensor, pipeline = run.sizes.tensor, run.sizes.pipeline
    passes = 3 + distilled
    tokens = run.num_microbatches * layout.seq_length
    unit = (tensor - 1) / tensor * model.hidden_size * 2
    tensor_bytes = unit * (10 + 4 * distilled) * model.num_layers / pipeline
    bubble = (pipeline - 1) / run.num_microbatches
    work = tokens * forward_flops(model, layout.seq_length) * passes / (run.sizes.ranks_per_copy * machine.flops)
    traffic = tokens * tensor_bytes / machine.tensor_bandwidth
    # Every message between stages has room for the teacher's half, if any sample is distilled.
    halves = 3 if distilled else 2
    stage_bytes = halves * model.hidden_size * 2 / tensor if pipeline > 1 else 0.0
    return Step((work + traffic) * (1 + bubble), bubble, tensor_bytes, stage_bytes, peak_bytes(model, layout))


def main() -> None:
    """Print a row for each model and number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
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
        for num_gpus, planned in LAYOUTS[name].items():
            if options.gpus is None or num_gpus in options.gpus:
                batch = {"seq_length": options.seq_length, "global_batch_size": options.num_sequences}
                print(table_row(name, replace(planned, **batch), machine))


def table_row(name: str, layout: Layout, machine: Machine) -> str:
    """One line of the table, in Markdown."""
    plain, half, full = (plan_step(PRESETS[name], layout, machine, distilled=share) for share in (0.0, 0.5, 1.0))
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    return (
        f"| {name} | {layout.num_gpus} | {tensor} x {pipeline} x {layout.data_parallel_size} | {plain.seconds:.1f} | "
        f"{full.seconds:.1f} | {full.seconds / plain.seconds:.3f} | {half.seconds / plain.seconds:.3f} | "
        f"{full.bubble:.1%} | {plain.tensor_bytes / 1e6:.2f} and {full.tensor_bytes / 1e6:.2f} MB | "
        f"{plain.stage_bytes / 1e3:.1f} and {full.stage_bytes / 1e3:.1f} kB | "
        f"{plain.memory / 2**30:.0f} and {full.memory / 2**30:.0f} |"
    )


if __name__ == "__main__":
    main()
