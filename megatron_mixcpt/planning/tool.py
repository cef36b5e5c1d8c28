"""``tools/plan.py``: flags to a layout, and the plan as a table with a verdict."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import get_args, get_type_hints

from megatron_mixcpt.planning.advice import suggest
from megatron_mixcpt.planning.layout import Layout
from megatron_mixcpt.planning.memory import StageMemory, plan_memory
from megatron_mixcpt.planning.shapes import PRESETS, ModelShape

GIB = 2**30


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the plan, which are the trainer's wherever it has them; changes ``parser`` in place."""
    presets = ", ".join(PRESETS)
    parser.add_argument("--hf-model", required=True, help=f"a folder with config.json, or one of {presets}")
    parser.add_argument("--gpu-memory", type=float, metavar="GIB", default=80.0, help="of one GPU; default: 80")
    help_ = "for CUDA, NCCL, kernels' workspaces and fragmentation; default: 6 (an allowance, not computed)"
    parser.add_argument("--reserve", type=float, metavar="GIB", default=6.0, help=help_)
    hints = get_type_hints(Layout)
    for field in dataclasses.fields(Layout):
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        if field.name == "recompute_modules":
            parser.add_argument(flag, nargs="+", default=default, choices=("core_attn", "layernorm", "mlp"))
        elif isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif type(default) is int or field.name == "num_gpus":
            parser.add_argument(flag, type=int, default=default, metavar="N")
        else:
            parser.add_argument(flag, default=default, choices=_choices(hints[field.name]))


def _choices(hint: object) -> list[str]:
    """The strings of ``Literal[...]`` or ``Literal[...] | None``."""
    parts = [value for part in get_args(hint) for value in (get_args(part) or (part,))]
    return [value for value in parts if isinstance(value, str)]


def layout_from(arguments: argparse.Namespace) -> Layout:
    """The layout that the flags describe; raises ConfigError where they contradict one another."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Layout)}
    return Layout(**values | {"recompute_modules": tuple(arguments.recompute_modules)})


def report(model: ModelShape, layout: Layout, *, gpu_memory: float, reserve: float) -> str:
    """The table of all stages and whether the largest fits; ``gpu_memory`` and ``reserve`` in GiB."""
    stages = plan_memory(model, layout)
    budget = (gpu_memory - reserve) * GIB
    lines = [_heading(model, layout), *_table(stages), *_verdict(stages, model, layout, gpu_memory, reserve)]
    if max(stage.peak for stage in stages) > budget:
        lines += _suggestions(model, layout, int(budget))
    return "\n".join(lines)


def _heading(model: ModelShape, layout: Layout) -> str:
    return (
        f"{model.num_parameters / 1e9:.2f} billion parameters, {layout.dtype}, "
        f"TP {layout.tensor_model_parallel_size} x PP {layout.pipeline_model_parallel_size} x "
        f"CP {layout.context_parallel_size} x DP {layout.data_parallel_size}; "
        f"{layout.micro_batch_size} x {layout.seq_length} tokens a microbatch, "
        f"{layout.num_microbatches} of them a step and rank; GiB on each rank:"
    )


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


def _suggestions(model: ModelShape, layout: Layout, budget: int) -> list[str]:
    """What to add, one change after the other."""
    steps = suggest(model, layout, budget)
    lines = [f"  with {flags}: {peak / GIB:.1f} GiB" for flags, peak in steps]
    if not steps or steps[-1][1] > budget:
        return [*lines, "  that is all that flags can do: take more GPUs (--num-gpus), or shorter sequences"]
    return [*lines, "  then it fits"]
