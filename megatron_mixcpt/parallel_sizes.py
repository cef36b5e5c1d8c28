"""How a run's ranks are divided: computed once from its settings, and checked as the engine would.

The settings are the engine's arguments by name. The trainers and the memory plan ask the same checks, so that what is
planned also trains. Without them the engine would refuse later, some of it only in the first step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import flag_name

Settings = Mapping[str, Any]

# With these flags the pipeline's stages hold different numbers of layers; the engine checks them.
_UNEVEN_STAGES = (
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)
_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_POSITIVE = (
    *_SIZES,
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "micro_batch_size",
    "global_batch_size",
    "seq_length",
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
    "recompute_num_layers",
)


@dataclass(frozen=True, kw_only=True)
class ParallelSizes:
    """The number of ranks along each axis of parallelism, and of chunks of layers on each rank."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    data: int = 1
    """Copies of the model."""
    expert: int = 1
    """Groups that the experts are divided into."""
    expert_tensor: int = 1
    """Ranks that share each expert; the engine's default is as many as share each layer."""
    chunks: int = 1
    """Chunks of layers on each pipeline rank; above 1 the pipeline is interleaved."""

    @classmethod
    def of(cls, settings: Settings, num_ranks: int | None = None) -> "ParallelSizes":
        """The sizes of a run.

        Args:
            settings: the engine's arguments by name.
            num_ranks: of the whole run. None: those of one copy of the model.

        Raises:
            ConfigError: a size that is not positive, or ranks that do not make complete copies of the model.
        """
        for name in _POSITIVE:
            if (value := settings.get(name)) is not None and value < 1:
                raise ConfigError(f"{flag_name(name)} {value} must be greater than 0")
        tensor, pipeline, context = (settings.get(name, 1) for name in _SIZES)
        needed = tensor * pipeline * context
        num_ranks = needed if num_ranks is None else num_ranks
        if num_ranks < needed or num_ranks % needed:
            raise ConfigError(
                f"{num_ranks} ranks cannot hold complete copies of a model of {tensor} x {pipeline} x {context} = "
                f"{needed} ranks (--tensor-model-parallel-size x --pipeline-model-parallel-size x "
                "--context-parallel-size): take a multiple of that many (torchrun --nproc-per-node, --nnodes; "
                "--num-gpus of tools/plan.py)"
            )
        sizes = {"tensor": tensor, "pipeline": pipeline, "context": context, "data": num_ranks // needed}
        return cls(**sizes, **_expert_sizes(settings, tensor), chunks=_chunks(settings, pipeline))

    @property
    def ranks_per_copy(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def expert_data(self) -> int:
        """Copies of each expert: the TP x CP x DP ranks of a stage hold its experts as EP x ETP x so many copies."""
        return self.tensor * self.context * self.data // (self.expert * self.expert_tensor)

    @property
    def microbatches_multiple(self) -> int:
        """What the microbatches of a step must be a multiple of: interleaved pipelines take them in groups."""
        return self.pipeline if self.chunks > 1 else 1


def _expert_sizes(settings: Settings, tensor: int) -> dict[str, int]:
    """How the experts are divided; 1 each in a dense model. Raises ConfigError for flags of experts that it lacks."""
    given = {name: settings.get(name) for name in ("expert_model_parallel_size", "expert_tensor_parallel_size")}
    expert, expert_tensor = given.values()
    if settings.get("num_experts"):
        return {"expert": expert or 1, "expert_tensor": expert_tensor or tensor}
    for name, value in given.items():
        if (value or 1) > 1:
            raise ConfigError(f"{flag_name(name)} {value}: the model has no experts; remove it")
    return {}


def _chunks(settings: Settings, pipeline: int) -> int:
    """Chunks of layers on each rank, by whichever of the engine's two flags is given."""
    chunks, layers = (
        settings.get(name) for name in ("num_virtual_stages_per_pipeline_rank", "num_layers_per_virtual_pipeline_stage")
    )
    if chunks and layers:
        raise ConfigError(
            f"--num-virtual-stages-per-pipeline-rank {chunks} and --num-layers-per-virtual-pipeline-stage {layers} "
            "decide the same: give one of them"
        )
    if layers and settings["num_layers"] % (pipeline * layers):
        raise ConfigError(
            f"--num-layers-per-virtual-pipeline-stage {layers} x --pipeline-model-parallel-size {pipeline} does not "
            f"divide the model's {settings['num_layers']} layers: choose a number that does"
        )
    return settings["num_layers"] // (pipeline * layers) if layers else chunks or 1


def check_layout(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError where the model, its sequences or its recomputation cannot be divided as the settings say."""
    _check_width(sizes, settings)
    if not any(settings.get(name) for name in _UNEVEN_STAGES):
        _check_depth(sizes, settings)
    if sizes.chunks > 1 and sizes.pipeline == 1:
        raise ConfigError(
            f"{sizes.chunks} chunks of layers on each rank need --pipeline-model-parallel-size 2 or more: remove "
            "--num-virtual-stages-per-pipeline-rank and --num-layers-per-virtual-pipeline-stage"
        )
    _check_sequence(sizes, settings)
    _check_recomputation(settings)
    if settings.get("num_experts"):
        _check_experts(sizes, settings)


def _check_experts(sizes: ParallelSizes, settings: Settings) -> None:
    """Experts are divided over EP groups, their columns over the ranks of each, and ranks over both."""
    num_experts = settings["num_experts"]
    columns = settings.get("moe_ffn_hidden_size") or settings["ffn_hidden_size"]
    if num_experts % sizes.expert:
        raise ConfigError(
            f"--expert-model-parallel-size {sizes.expert} does not divide the model's {num_experts} experts: choose a "
            "size that does"
        )
    if columns % sizes.expert_tensor:
        raise ConfigError(
            f"--expert-tensor-parallel-size {sizes.expert_tensor} (default: --tensor-model-parallel-size) does not "
            f"divide the {columns} columns of the model's experts: choose a size that does"
        )
    shared, ranks = sizes.tensor * sizes.context * sizes.data, sizes.expert * sizes.expert_tensor
    if shared % ranks:
        raise ConfigError(
            f"the {shared} ranks of each pipeline stage cannot be divided into {sizes.expert} x {sizes.expert_tensor} "
            "(--expert-model-parallel-size x --expert-tensor-parallel-size): choose sizes whose product divides "
            f"{shared}"
        )
    if sizes.tensor > 1 and not settings.get("sequence_parallel"):
        raise ConfigError(
            f"--tensor-model-parallel-size {sizes.tensor} of a model with experts needs --sequence-parallel: add it"
        )


def _check_width(sizes: ParallelSizes, settings: Settings) -> None:
    """Heads, the MLP and the groups are divided over tensor parallel ranks; ranks may share a group."""
    tensor, groups = sizes.tensor, settings["num_query_groups"]
    whats = {"num_attention_heads": "attention heads"}
    if not settings.get("num_experts") or settings.get("moe_layer_freq", 1) != 1:  # else no layer has a dense MLP
        whats["ffn_hidden_size"] = "MLP columns"
    for name, what in whats.items():
        if settings[name] % tensor:
            raise ConfigError(
                f"--tensor-model-parallel-size {tensor} does not divide the model's {settings[name]} {what}: choose a "
                "size that does"
            )
    if groups % tensor and tensor % groups:
        raise ConfigError(
            f"--tensor-model-parallel-size {tensor} is neither a divisor nor a multiple of the model's {groups} query "
            "groups: choose a size that is"
        )


def _check_depth(sizes: ParallelSizes, settings: Settings) -> None:
    if settings["num_layers"] % (sizes.pipeline * sizes.chunks):
        chunks = f" x {sizes.chunks} chunks on each rank" if sizes.chunks > 1 else ""
        raise ConfigError(
            f"--pipeline-model-parallel-size {sizes.pipeline}{chunks} does not divide the model's "
            f"{settings['num_layers']} layers: choose a number that does"
        )


def _check_sequence(sizes: ParallelSizes, settings: Settings) -> None:
    length, longest = settings["seq_length"], settings["max_position_embeddings"]
    if length > longest:
        raise ConfigError(
            f"--seq-length {length} is longer than the model's {longest} positions: give at most that, or "
            f"--max-position-embeddings {length} for a model that can be used beyond them"
        )
    if sizes.context > 1 and length % (2 * sizes.context):
        raise ConfigError(
            f"--seq-length {length} is not a multiple of {2 * sizes.context}, which is twice --context-parallel-size "
            f"{sizes.context}: change one of them"
        )
    if settings.get("sequence_parallel") and length // sizes.context % sizes.tensor:
        raise ConfigError(
            f"--sequence-parallel: the {length // sizes.context} tokens of a sequence on each rank cannot be divided "
            f"by --tensor-model-parallel-size {sizes.tensor}; change --seq-length"
        )


def _check_recomputation(settings: Settings) -> None:
    granularity = "selective" if settings.get("recompute_activations") else settings.get("recompute_granularity")
    given = {name: settings.get(name) for name in ("recompute_method", "recompute_num_layers")}
    for name, value in given.items():
        if granularity == "full" and value is None:
            example = {"recompute_method": "uniform", "recompute_num_layers": 1}[name]
            raise ConfigError(f"--recompute-granularity full needs {flag_name(name)}: give {flag_name(name)} {example}")
        if granularity == "selective" and value is not None:
            raise ConfigError(f"{flag_name(name)} {value} goes with --recompute-granularity full only: remove it")


def global_batch_size(sizes: ParallelSizes, settings: Settings) -> int:
    """``--global-batch-size`` in sequences, or one microbatch for each copy of the model, as in the engine."""
    return settings.get("global_batch_size") or settings["micro_batch_size"] * sizes.data


def check_batches(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError where the global batch does not make equally many microbatches for each copy of the model."""
    micro, batch = settings["micro_batch_size"], global_batch_size(sizes, settings)
    if batch % (micro * sizes.data):
        raise ConfigError(
            f"--global-batch-size {batch} is not a multiple of --micro-batch-size {micro} x {sizes.data} copies of the "
            "model (data parallel): change one of them"
        )
    microbatches, group = batch // (micro * sizes.data), sizes.microbatches_multiple
    if microbatches % group and not settings.get("microbatch_group_size_per_vp_stage"):
        raise ConfigError(
            f"--global-batch-size {batch} makes {microbatches} microbatches in each step, and an interleaved pipeline "
            f"takes a multiple of its {group} stages: give a multiple of {micro * sizes.data * group}"
        )
