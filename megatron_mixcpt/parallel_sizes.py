"""How a run's ranks are divided: computed once from its settings, and checked as the engine would.

The settings are the engine's arguments by name. The trainers, the memory plan, scoring and evaluation ask the same
checks, so that what is planned also trains. Without them the engine would refuse later, with an assertion of its own,
some of it only in the first step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

from megatron_mixcpt.errors import ConfigError, nearest, nearest_divisors, nearest_multiples
from megatron_mixcpt.flags import flag_name
from megatron_mixcpt.pipeline_stages import stages_of

Settings = Mapping[str, Any]

_SIZES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_POSITIVE = (
    *_SIZES,
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_distributed_optimizer_instances",
    "micro_batch_size",
    "global_batch_size",
    "seq_length",
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
    "recompute_num_layers",
)
_GROUP = "--microbatch-group-size-per-virtual-pipeline-stage"


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
    microbatch_group: int = 1
    """Microbatches that a chunk of an interleaved pipeline takes before the next chunk; 1 in any other."""

    @classmethod
    def of(cls, settings: Settings, num_ranks: int | None = None) -> "ParallelSizes":
        """The sizes of a run.

        Args:
            settings: the engine's arguments by name.
            num_ranks: of the whole run. None: those of one copy of the model.

        Raises:
            ConfigError: a size that is not positive, that the model's layers, heads, columns or experts cannot be
                divided by, or ranks that do not make complete copies of the model.
        """
        for name in _POSITIVE:
            if (value := settings.get(name)) is not None and value < 1:
                raise ConfigError(f"{flag_name(name)} {value} must be greater than 0")
        tensor, pipeline, context = (settings.get(name, 1) for name in _SIZES)
        expert, expert_tensor = _expert_sizes(settings, tensor)
        of_stage = lcm(tensor * context, expert * expert_tensor)
        num_ranks = of_stage * pipeline if num_ranks is None else num_ranks
        sizes = cls(
            tensor=tensor,
            pipeline=pipeline,
            context=context,
            data=num_ranks // (tensor * pipeline * context),
            expert=expert,
            expert_tensor=expert_tensor,
            chunks=(chunks := len(stages_of(settings)[0])),
            microbatch_group=_microbatch_group(settings, pipeline) if chunks > 1 else 1,
        )
        _check_width(sizes, settings)
        if settings.get("linear_attention_freq"):
            _check_delta_nets(sizes, settings)
        if settings.get("num_experts"):
            _check_experts(sizes, settings)
        if num_ranks < 1 or num_ranks % (of_stage * pipeline):
            raise ConfigError(_wrong_ranks(sizes, num_ranks, of_stage * pipeline))
        return sizes

    @property
    def described(self) -> str:
        """The sizes in one line, by the names that the flags have in every text about them."""
        text = f"TP {self.tensor} x PP {self.pipeline} x CP {self.context} x DP {self.data}"
        if self.chunks > 1:
            text += f", {self.chunks} chunks of layers on each rank"
        if self.expert * self.expert_tensor > 1:
            text += f", experts EP {self.expert} x ETP {self.expert_tensor} x DP {self.expert_data}"
        return text

    @property
    def ranks_per_copy(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context

    def length_multiple(self, of_rank: int) -> int:
        """What a row's length must be a multiple of, where each rank's part of it must be one of ``of_rank``.

        Ranks that share a row have two chunks of it each.
        """
        return self.context * lcm(2, of_rank) if self.context > 1 else of_rank

    @property
    def expert_data(self) -> int:
        """Copies of each expert: the TP x CP x DP ranks of a stage hold its experts as EP x ETP x so many copies."""
        return self.tensor * self.context * self.data // (self.expert * self.expert_tensor)


def _microbatch_group(settings: Settings, pipeline: int) -> int:
    """Microbatches that a chunk takes in succession; by default as many as there are stages, as in the engine."""
    group = settings.get("microbatch_group_size_per_vp_stage")
    return pipeline if group is None else group


def _wrong_ranks(sizes: ParallelSizes, num_ranks: int, needed: int) -> str:
    """Why so many ranks are not divided; ``needed``: what they must be a multiple of."""
    layout = f"TP {sizes.tensor} x PP {sizes.pipeline} x CP {sizes.context}"
    if sizes.expert * sizes.expert_tensor > 1:
        layout += f", with experts EP {sizes.expert} x ETP {sizes.expert_tensor} x PP {sizes.pipeline}"
    fewer = f"{num_ranks // needed * needed} or " if num_ranks > needed else ""
    return (
        f"{num_ranks} rank{'s' * (num_ranks != 1)} cannot be divided into complete copies of the model of {needed} "
        f"({layout}): start {fewer}{(num_ranks // needed + 1) * needed} (torchrun's --nproc-per-node x --nnodes; "
        "GPUS_PER_NODE x NNODES of the examples; --assume-ranks of a dry run; --num-gpus of tools/plan.py), or change "
        "these sizes"
    )


def _expert_sizes(settings: Settings, tensor: int) -> tuple[int, int]:
    """EP and ETP; 1 each in a dense model. Raises ConfigError for flags of experts that the model lacks."""
    names = ("expert_model_parallel_size", "expert_tensor_parallel_size")
    expert, expert_tensor = (settings.get(name) for name in names)
    if settings.get("num_experts"):
        return expert or 1, expert_tensor or tensor
    for name, value in zip(names, (expert, expert_tensor), strict=True):
        if (value or 1) > 1:
            raise ConfigError(f"{flag_name(name)} {value}: the model has no experts; remove it")
    return 1, 1


def check_layout(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError where sequences cannot be divided, or layers recomputed, as the settings of a training say."""
    needing = {"experts": settings.get("num_experts"), "gated delta nets": settings.get("linear_attention_freq")}
    what = next((what for what, given in needing.items() if given), None)
    if what and sizes.tensor > 1 and not settings.get("sequence_parallel"):
        raise ConfigError(
            f"--tensor-model-parallel-size {sizes.tensor} of a model with {what} needs --sequence-parallel: add it"
        )
    _check_sequence(sizes, settings)
    _check_recomputation(settings)


def _check_width(sizes: ParallelSizes, settings: Settings) -> None:
    """Heads, the MLP and the groups are divided over tensor parallel ranks; ranks may share a group."""
    tensor, groups = sizes.tensor, settings["num_query_groups"]
    counts = {"attention heads": settings["num_attention_heads"]}
    if not settings.get("num_experts") or settings.get("moe_layer_freq", 1) != 1:  # else no layer has a dense MLP
        counts["MLP columns"] = settings["ffn_hidden_size"]
    if shared := settings.get("moe_shared_expert_intermediate_size"):
        counts["columns of the shared experts"] = shared
    if settings.get("linear_attention_freq"):
        counts["heads of keys in gated delta nets"] = settings["linear_num_key_heads"]

    def works(size: int) -> bool:
        return not any(count % size for count in counts.values()) and not (groups % size and size % groups)

    choose = f"choose {nearest(tensor, works, most=settings['num_attention_heads'])}"
    for what, count in counts.items():
        if count % tensor:
            raise ConfigError(
                f"--tensor-model-parallel-size {tensor} does not divide the model's {count} {what}: {choose}"
            )
    if groups % tensor and tensor % groups:
        raise ConfigError(
            f"--tensor-model-parallel-size {tensor} is neither a divisor nor a multiple of the model's {groups} query "
            f"groups: {choose}"
        )


def _check_delta_nets(sizes: ParallelSizes, settings: Settings) -> None:
    """Context parallelism divides the heads of gated delta nets, once more than tensor parallelism has."""
    heads = settings["linear_num_key_heads"] // sizes.tensor
    if heads % sizes.context:
        raise ConfigError(
            f"--context-parallel-size {sizes.context} does not divide the {heads} heads of keys that "
            f"--tensor-model-parallel-size {sizes.tensor} leaves to a rank's gated delta nets: choose "
            f"{nearest_divisors(sizes.context, heads)}"
        )


def _check_experts(sizes: ParallelSizes, settings: Settings) -> None:
    """Experts are divided over EP groups, and their columns over the ranks of each."""
    num_experts = settings["num_experts"]
    columns = settings.get("moe_ffn_hidden_size") or settings["ffn_hidden_size"]
    if num_experts % sizes.expert:
        choose = nearest_divisors(sizes.expert, num_experts)
        raise ConfigError(
            f"--expert-model-parallel-size {sizes.expert} does not divide the model's {num_experts} experts: choose "
            f"{choose}"
        )
    if columns % sizes.expert_tensor:
        choose = nearest_divisors(sizes.expert_tensor, columns)
        raise ConfigError(
            f"--expert-tensor-parallel-size {sizes.expert_tensor} (default: --tensor-model-parallel-size) does not "
            f"divide the {columns} columns of the model's experts: choose {choose}"
        )


def _check_sequence(sizes: ParallelSizes, settings: Settings) -> None:
    length, longest = settings["seq_length"], settings["max_position_embeddings"]
    if length > longest:
        raise ConfigError(
            f"--seq-length {length} is longer than the model's {longest} positions: give at most that, or "
            f"--max-position-embeddings {length} for a model that can be used beyond them"
        )
    shared = sizes.tensor if settings.get("sequence_parallel") else 1
    multiple = sizes.length_multiple(shared)
    if length % multiple:
        context = f"twice --context-parallel-size {sizes.context}" if sizes.context > 1 else ""
        tensor = f"--sequence-parallel over --tensor-model-parallel-size {sizes.tensor}" if shared > 1 else ""
        reason = " and ".join(filter(None, (context, tensor)))
        choose = nearest_multiples(length, multiple)
        raise ConfigError(
            f"--seq-length {length} is not a multiple of {multiple}, which it must be for {reason}: choose {choose}"
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
    if granularity == "selective":
        _check_recomputed_modules(settings.get("recompute_modules") or (), settings)


def _check_recomputed_modules(modules: Iterable[str], settings: Settings) -> None:
    of_experts = {"moe", "moe_act", "shared_experts"}
    known = {"core_attn", "layernorm", "mlp"} | (of_experts if settings.get("num_experts") else set())
    if unknown := sorted(set(modules) - known):
        what = "the model has no experts" if unknown[0] in of_experts else "the layers have no such module"
        raise ConfigError(f"--recompute-modules {unknown[0]}: {what}; choose from {', '.join(sorted(known))}")
    if "moe_act" in modules and not settings.get("moe_grouped_gemm"):
        raise ConfigError("--recompute-modules moe_act needs --moe-grouped-gemm: add it, or give moe")
    # The engine's way of not saving a module's output is Transformer Engine's.
    if "layernorm" in modules and settings["transformer_impl"] == "local":
        raise ConfigError(
            "--recompute-modules layernorm needs Transformer Engine, which is not used here (--transformer-impl "
            "local): leave it out"
        )


def global_batch_size(sizes: ParallelSizes, settings: Settings) -> int:
    """``--global-batch-size`` in sequences, or one microbatch for each copy of the model, as in the engine."""
    return settings.get("global_batch_size") or settings["micro_batch_size"] * sizes.data


def check_batches(sizes: ParallelSizes, settings: Settings) -> None:
    """Raise ConfigError where the global batch does not make equally many microbatches for each copy of the model."""
    micro, batch = settings["micro_batch_size"], global_batch_size(sizes, settings)
    if batch % (micro * sizes.data):
        choose = nearest_multiples(batch, micro * sizes.data)
        raise ConfigError(
            f"--global-batch-size {batch} is not a multiple of --micro-batch-size {micro} x {sizes.data} copies of the "
            f"model (data parallel): choose {choose}, or change --micro-batch-size"
        )
    _check_microbatches(batch // (micro * sizes.data), sizes, micro * sizes.data)


def _check_microbatches(number: int, sizes: ParallelSizes, of_each: int) -> None:
    """An interleaved pipeline takes microbatches in groups; the last may be smaller, but fills the stages too."""
    group, stages = sizes.microbatch_group, sizes.pipeline
    if sizes.chunks == 1:
        return
    if group < stages:
        raise ConfigError(
            f"{_GROUP} {group} is less than the {stages} pipeline stages: give {stages} or more, or remove it"
        )
    if number < group or 0 < number % group < stages:
        raise ConfigError(
            f"--global-batch-size {number * of_each} makes {number} microbatches in each step, and this interleaved "
            f"pipeline takes them in groups of {group}: give a multiple of {of_each * group}"
        )
