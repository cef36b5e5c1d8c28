"""Flags of the engine that only some layouts allow: what it would refuse with an assertion, or in the first step.

``parallel_sizes.py`` has the sizes themselves, which the memory plan shares; these are flags of the trainers alone.
"""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

from megatron.training.utils import get_device_arch_version

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.parallel_sizes import ParallelSizes, global_batch_size

Settings = Mapping[str, Any]

_CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


def check_layout_flags(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError for a flag that this layout does not allow, or for an environment that it does not."""
    for check in (_optimizer, _pipeline, _context, _saved_activations, _environment):
        for problem in check(sizes, settings):
            raise ConfigError(problem)


def _optimizer(sizes: ParallelSizes, settings: Settings) -> Iterator[str]:
    """Sharding the optimizer's state, and overlapping its communication."""
    sharded = settings.get("use_distributed_optimizer")
    if settings.get("overlap_param_gather"):
        for flag, given in {
            "--use-distributed-optimizer": sharded or settings.get("optimizer") == "dist_muon",
            "--overlap-grad-reduce": settings.get("overlap_grad_reduce"),
        }.items():
            if not given:
                yield f"--overlap-param-gather needs {flag}: add it, or remove --overlap-param-gather"
    if settings.get("use_precision_aware_optimizer"):
        if not sharded:
            yield "--use-precision-aware-optimizer needs --use-distributed-optimizer: add it, or remove the flag"
        if settings["transformer_impl"] != "transformer_engine":
            yield "--use-precision-aware-optimizer needs Transformer Engine, which is not used here: remove it"
    instances = settings.get("num_distributed_optimizer_instances") or 1
    if instances > 1:
        if not sharded:
            yield f"--num-distributed-optimizer-instances {instances} needs --use-distributed-optimizer: add it"
        copies = {f"DP {sizes.data} x CP {sizes.context} copies of the model": sizes.data * sizes.context}
        if settings.get("num_experts"):
            copies[f"{sizes.expert_data} copies of each expert"] = sizes.expert_data
        for what, number in copies.items():
            if number % instances:
                yield f"--num-distributed-optimizer-instances {instances} does not divide the {what}: change it"


def _pipeline(sizes: ParallelSizes, settings: Settings) -> Iterator[str]:
    if sizes.chunks > 1 and sizes.pipeline == 2 and not settings.get("overlap_p2p_comm", True):
        yield (
            "--no-overlap-p2p-communication with an interleaved pipeline needs --pipeline-model-parallel-size 3 or "
            "more, not 2: remove it"
        )
    if settings.get("overlap_p2p_comm_warmup_flush") and (
        sizes.chunks == 1 or not settings.get("overlap_p2p_comm", True)
    ):
        yield (
            "--overlap-p2p-communication-warmup-flush needs an interleaved pipeline "
            "(--num-virtual-stages-per-pipeline-rank) whose communication overlaps: remove it"
        )
    if settings.get("use_tp_pp_dp_mapping") and sizes.pipeline > 1 and sizes.data != sizes.expert_data:
        if settings.get("num_experts"):
            yield (
                f"--use-tp-pp-dp-mapping needs as many copies of each expert as of the model, not {sizes.expert_data} "
                f"and {sizes.data} ({sizes.described}): remove it, or choose EP x ETP = TP x CP"
            )


def _context(sizes: ParallelSizes, settings: Settings) -> Iterator[str]:
    """How the ranks that share a sequence exchange it: kernels of Transformer Engine."""
    levels = settings.get("hierarchical_context_parallel_sizes")
    kinds = list(settings.get("cp_comm_type") or ["p2p"])
    if levels and math.prod(levels) != sizes.context:
        yield (
            f"--hierarchical-context-parallel-sizes {' '.join(map(str, levels))} must have the product "
            f"--context-parallel-size {sizes.context}: change it"
        )
    if levels and "a2a+p2p" not in kinds:
        yield "--hierarchical-context-parallel-sizes has no effect without --cp-comm-type a2a+p2p: remove it"
    if kinds == ["p2p"]:
        return
    flag = f"--cp-comm-type {' '.join(kinds)}"
    if sizes.context == 1 or settings["transformer_impl"] != "transformer_engine":
        yield f"{flag}: how Transformer Engine shares sequences (--context-parallel-size) is not used here; remove it"
    if unknown := sorted(set(kinds) - {"p2p", "a2a", "all_gather", "a2a+p2p"}):
        yield f"{flag}: {unknown[0]} is not one of p2p, a2a, all_gather, a2a+p2p"
    if len(kinds) not in (1, settings["num_layers"]):
        yield f"{flag}: give one kind, or one for each of the model's {settings['num_layers']} layers"
    if "a2a+p2p" in kinds and not levels:
        yield f"{flag} needs --hierarchical-context-parallel-sizes, whose product is {sizes.context}: add it"
    over = sizes.context if "a2a" in kinds else levels[0] if levels else 1
    for what, name in {"attention heads": "num_attention_heads", "query groups": "num_query_groups"}.items():
        on_a_rank = max(settings[name] // sizes.tensor, 1)
        if on_a_rank % over:
            yield f"{flag} divides the {on_a_rank} {what} of a rank over {over} ranks, which is impossible: use p2p"


def _saved_activations(sizes: ParallelSizes, settings: Settings) -> Iterator[str]:
    if not settings.get("distribute_saved_activations"):
        return
    for what, holds in {
        "--tensor-model-parallel-size 2 or more": sizes.tensor > 1,
        "--recompute-granularity full": settings.get("recompute_granularity") == "full",
    }.items():
        if not holds:
            yield f"--distribute-saved-activations needs {what}: remove it"
    if settings.get("sequence_parallel"):
        yield "--distribute-saved-activations: --sequence-parallel divides them already; remove it"


def check_evaluation(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError for an evaluation's batch that does not make equally many microbatches on each rank."""
    micro = settings.get("eval_micro_batch_size") or settings["micro_batch_size"]
    batch = settings.get("eval_global_batch_size") or global_batch_size(sizes, settings)
    number, rest = divmod(batch, micro * sizes.data)
    group = sizes.microbatch_group
    if number < group or rest or 0 < number % group < min(sizes.pipeline, group):
        raise ConfigError(
            f"--eval-global-batch-size {batch} (default: --global-batch-size) must be a multiple of "
            f"{micro * sizes.data * group}: --eval-micro-batch-size {micro} (default: --micro-batch-size) x "
            f"{sizes.data} copies of the model" + (f" x {group} microbatches" if group > 1 else "")
        )


def _environment(sizes: ParallelSizes, settings: Settings) -> Iterator[str]:
    """The engine asks for one queue to the device, with which kernels start in the order they are issued."""
    connections = os.environ.get(_CONNECTIONS)
    if connections != "1" and (sizes.tensor > 1 or sizes.context > 1) and get_device_arch_version() < 10:
        yield (
            f"{_CONNECTIONS}={connections} in the environment: tensor and context parallelism need 1 on this device; "
            f"export {_CONNECTIONS}=1"
        )
