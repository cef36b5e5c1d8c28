"""What to change when a run does not fit: the cheapest changes first, each tried by planning again."""

import dataclasses
from collections.abc import Iterator

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.planning.layout import Layout
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import ModelShape

# A change that saves less than this share of the peak is not worth its flag.
WORTHWHILE = 0.01
# Tensor parallelism beyond the GPUs of one host is slow.
GPUS_PER_HOST = 8


def peak_bytes(model: ModelShape, layout: Layout) -> int:
    """Of the stage that needs most."""
    return max(stage.peak for stage in plan_memory(model, layout))


def suggest(model: ModelShape, layout: Layout, budget: int) -> list[tuple[str, int]]:
    """Flags to add one after the other until the peak is within ``budget`` bytes, each with the peak it then leaves.

    The last one's peak is still above the budget where nothing here helps enough.
    """
    peak, steps = peak_bytes(model, layout), []
    while peak > budget:
        for flags, changed in _changes(layout):
            better = _peak_if_possible(model, changed)
            if better is not None and better < peak * (1 - WORTHWHILE):
                layout, peak = changed, better
                steps.append((flags, peak))
                break
        else:
            break
    return steps


def _peak_if_possible(model: ModelShape, layout: Layout | None) -> int | None:
    try:
        return peak_bytes(model, layout) if layout else None
    except ConfigError:
        return None


def _changes(layout: Layout) -> Iterator[tuple[str, Layout | None]]:
    """Flags and the layout that they make of this one, None where that is none; what costs least time comes first."""
    sizes = {"tensor_model_parallel_size": layout.tensor_model_parallel_size}
    sizes["pipeline_model_parallel_size"] = layout.pipeline_model_parallel_size
    if not layout.use_distributed_optimizer:
        yield "--use-distributed-optimizer", _replaced(layout, use_distributed_optimizer=True)
    if layout.tensor_model_parallel_size > 1 and not layout.sequence_parallel:
        yield "--sequence-parallel", _replaced(layout, sequence_parallel=True)
    if layout.micro_batch_size > 1:
        yield "--micro-batch-size 1", _replaced(layout, micro_batch_size=1)
    if not layout.loss_chunk_tokens:
        yield "--loss-chunk-tokens 512", _replaced(layout, loss_chunk_tokens=512)
    for name, size in sizes.items():
        if name != "tensor_model_parallel_size" or 2 * size <= GPUS_PER_HOST:
            extra = {"sequence_parallel": True} if name.startswith("tensor") else {}
            flags = " --sequence-parallel" if extra and not layout.sequence_parallel else ""
            yield f"--{name.replace('_', '-')} {2 * size}{flags}", _replaced(layout, **{name: 2 * size}, **extra)
    if layout.recompute_granularity != "full":
        flags = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
        recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        yield flags, _replaced(layout, **recompute)
    if layout.runs_teacher and layout.teacher_offload == "none":
        yield "--teacher-offload cpu", _replaced(layout, teacher_offload="cpu")


def _replaced(layout: Layout, **changes: object) -> Layout | None:
    """The layout with these changes, or None where the number of GPUs forbids it."""
    try:
        return dataclasses.replace(layout, **changes)
    except ConfigError:
        return None
