"""Says how much of each GPU's memory a run of continual pre-training takes.

    python tools/plan.py --hf-model llama-3-8b --num-gpus 8 --tensor-model-parallel-size 2 --sequence-parallel \\
        --use-distributed-optimizer --micro-batch-size 2 --bf16

The flags of the layout and of the objective are the trainer's, and a layout is accepted if it trains. Where the plan
exceeds --gpu-memory, a warning says what to change. How it counts, and how close that is to measurements:
docs/how-to/plan-memory.md.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_mixcpt import flags
from megatron_mixcpt.errors import ConfigError, exit_on_user_error
from megatron_mixcpt.flags import setting, settings_from
from megatron_mixcpt.planning.activations import expert_bytes
from megatron_mixcpt.planning.adapters import num_adapter_parameters
from megatron_mixcpt.planning.advice import suggest
from megatron_mixcpt.planning.layout import Layout, PlannedRun
from megatron_mixcpt.planning.memory import StageMemory, plan_memory
from megatron_mixcpt.planning.shapes import ModelShape, model_shape
from megatron_mixcpt.planning.weights import teacher_host_bytes

GIB = 2**30
# Tokens of a microbatch from which on a layer of the teacher runs longer than its copy to the device takes, in
# bfloat16: 544 TFLOP/s of an H100's products to 50 GB/s of PCIe (distillation/offload.py).
COPY_BOUND_TOKENS = 10_900


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """The model and the GPUs."""

    hf_model: str
    """Folder with config.json, or a model whose sizes are built in: llama-3-8b, llama-3-70b, qwen2-7b, mixtral-8x7b or
    qwen3-30b-a3b."""

    gpu_memory: float = setting(default=80.0, metavar="GIB")
    """Memory of each GPU in GiB."""

    reserve: float = setting(default=6.0, metavar="GIB")
    """GiB set aside for CUDA, NCCL, workspaces of kernels and fragmentation: an allowance, not a computation."""

    def __post_init__(self) -> None:
        for flag, value in (("--gpu-memory", self.gpu_memory), ("--reserve", self.reserve)):
            if value < 0:
                raise ConfigError(f"{flag} {value}: must be at least 0")


def build_parser() -> flags.Parser:
    """The parser of the tool: the model and the GPUs, then the trainer's flags of the layout."""
    return flags.build_parser(__doc__, PlanSettings, Layout)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, plan, and print the plan."""
    arguments = build_parser().parse_args(argv)
    settings, layout = settings_from(arguments, PlanSettings), settings_from(arguments, Layout)
    model = model_shape(settings.hf_model)
    print(report(model, layout, gpu_memory=settings.gpu_memory, reserve=settings.reserve))


def report(model: ModelShape, layout: Layout, *, gpu_memory: float, reserve: float) -> str:
    """The table of all stages and whether the largest fits; ``gpu_memory`` and ``reserve`` in GiB."""
    stages = plan_memory(model, layout)
    budget = (gpu_memory - reserve) * GIB
    run = PlannedRun.of(model, layout)
    lines = [
        _heading(run),
        *_table(stages),
        *_verdict(stages, model, layout, gpu_memory, reserve),
        *_offload(run),
        *_balance(run),
    ]
    if max(stage.peak for stage in stages) > budget:
        lines += _suggestions(model, layout, int(budget))
    return "\n".join(lines)


def _heading(run: PlannedRun) -> str:
    layout = run.layout
    active = f" ({run.model.num_active_parameters / 1e9:.2f} billion for each token)" if run.model.num_experts else ""
    return (
        f"{run.model.num_parameters / 1e9:.2f} billion parameters{active}{_trained(run)}, "
        f"{'bfloat16' if layout.bf16 else 'float32'}, {run.sizes.described}; microbatches of "
        f"{layout.micro_batch_size} x {layout.seq_length} tokens, {run.num_microbatches} on each rank in each step; "
        "GiB on each rank:"
    )


def _trained(run: PlannedRun) -> str:
    lora = run.layout.lora
    if not lora.is_given:
        return ""
    return f", trained {num_adapter_parameters(run) / 1e6:.2f} million in adapters of rank {lora.lora_rank}"


def _table(stages: Sequence[StageMemory]) -> list[str]:
    names = [field.name for field in dataclasses.fields(StageMemory)]
    rows = [["stage", *names, "peak"]]
    for number, stage in enumerate(stages):
        rows.append([str(number), *(f"{getattr(stage, name) / GIB:.2f}" for name in (*names, "peak"))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _verdict(
    stages: Sequence[StageMemory], model: ModelShape, layout: Layout, gpu_memory: float, reserve: float
) -> list[str]:
    peaks = [stage.peak for stage in stages]
    needed = max(peaks) / GIB + reserve
    where = f"stage {peaks.index(max(peaks))}: {max(peaks) / GIB:.1f} GiB and {reserve:g} in reserve"
    if needed <= gpu_memory:
        return [f"fits: {where}, of {gpu_memory:g} GiB"]
    return [f"warning: does not fit: {where}, {needed - gpu_memory:.1f} GiB more than --gpu-memory {gpu_memory:g}"]


def _offload(run: PlannedRun) -> list[str]:
    """What an offloaded teacher costs elsewhere: memory of the host and, with short microbatches, time."""
    if not (host_bytes := teacher_host_bytes(run)):
        return []
    lines = [f"the teacher's layers take {host_bytes / GIB:.1f} GiB of page-locked host memory for each rank"]
    if run.tokens < COPY_BOUND_TOKENS:
        lines.append(
            f"  and longer to copy than to run: below about {COPY_BOUND_TOKENS:,} tokens in a microbatch (here "
            f"{run.tokens:,}) the teacher waits for its weights; raise --micro-batch-size where memory allows"
        )
    return lines


def _balance(run: PlannedRun) -> list[str]:
    """What the plan assumes of routers, and what it costs where they do otherwise."""
    if not run.model.num_experts:
        return []
    chunks = [chunk for stage in range(run.sizes.pipeline) for chunk in run.chunks_of(stage)]
    rows = expert_bytes(run) * max(sum(layer.expert > 0 for layer in chunk) for chunk in chunks) / GIB
    return [
        "the plan assumes that routers spread tokens evenly over the ranks' experts; of each microbatch in flight, "
        f"{rows:.2f} GiB a rank grow with the tokens that its experts get (log: expert load max/mean)"
    ]


def _suggestions(model: ModelShape, layout: Layout, budget: int) -> list[str]:
    """What to add, one change after the other."""
    steps = suggest(model, layout, budget)
    lines = [f"  with {added}: {peak / GIB:.1f} GiB" for added, peak in steps]
    if not steps or steps[-1][1] > budget:
        return [*lines, "  no other flag helps: take more GPUs (--num-gpus), or shorter sequences"]
    return [*lines, "  then it fits"]
