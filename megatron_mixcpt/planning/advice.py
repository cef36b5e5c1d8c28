"""What to change when a run does not fit: the cheapest changes first, each tried by planning again."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.planning.layout import Layout
from megatron_mixcpt.planning.memory import plan_memory
from megatron_mixcpt.planning.shapes import ModelShape

# A change that saves less than this share of the peak is not worth its flag.
WORTHWHILE = 0.01
# Tensor parallelism beyond the GPUs of one host is slow.
GPUS_PER_HOST = 8
_RECOMPUTE_LAYERS = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"


def peak_bytes(model: ModelShape, layout: Layout) -> int:
    """Peak memory over all stages."""
    return max(stage.peak for stage in plan_memory(model, layout))


def suggest(model: ModelShape, layout: Layout, budget: int) -> list[tuple[str, int]]:
    """Flags to add one after the other until the peak is within ``budget`` bytes, each with the peak that remains.

    The last peak is still above the budget where no further flag helps.
    """
    peak, steps = peak_bytes(model, layout), []
    while peak > budget:
        step = next(_worthwhile_changes(model, layout, peak), None)
        if step is None:
            break
        flags, layout, peak = step
        steps.append((flags, peak))
    return steps


def _worthwhile_changes(model: ModelShape, layout: Layout, peak: int) -> Iterator[tuple[str, Layout, int]]:
    """Flags that save enough, with the layout and the peak that they lead to."""
    for flags, changes in _changes(model, layout):
        try:
            changed = dataclasses.replace(layout, **changes)
            better = peak_bytes(model, changed)
        except ConfigError:  # the model or the number of GPUs does not allow it
            continue
        if better < peak * (1 - WORTHWHILE):
            yield flags, changed, better


def _changes(model: ModelShape, layout: Layout) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flags, and the fields of the layout that they change; what costs the least time comes first."""
    tensor, pipeline = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    if not layout.use_distributed_optimizer:
        yield "--use-distributed-optimizer", {"use_distributed_optimizer": True}
    if tensor > 1 and not layout.sequence_parallel:
        yield "--sequence-parallel", {"sequence_parallel": True}
    if layout.micro_batch_size > 1:
        yield "--micro-batch-size 1", {"micro_batch_size": 1}
    if not layout.loss_chunk_tokens:
        yield "--loss-chunk-tokens 512", {"loss_chunk_tokens": 512}
    if model.num_experts:
        experts = 2 * layout.expert_model_parallel_size
        yield f"--expert-model-parallel-size {experts}", {"expert_model_parallel_size": experts}
    if 2 * tensor <= GPUS_PER_HOST:
        flags = "" if layout.sequence_parallel else " --sequence-parallel"
        changes = {"tensor_model_parallel_size": 2 * tensor, "sequence_parallel": True}
        yield f"--tensor-model-parallel-size {2 * tensor}{flags}", changes
    yield f"--pipeline-model-parallel-size {2 * pipeline}", {"pipeline_model_parallel_size": 2 * pipeline}
    if not layout.recomputes_layers:
        yield (
            _RECOMPUTE_LAYERS,
            {
                "recompute_activations": False,
                "recompute_granularity": "full",
                "recompute_method": "uniform",
                "recompute_num_layers": 1,
            },
        )
    if layout.objective.runs_teacher and layout.teacher_offload == "none":
        yield "--teacher-offload cpu", {"teacher_offload": "cpu"}
