"""How a run is laid out, as far as memory depends on it; the flags are the trainer's and mean the same."""

from dataclasses import dataclass
from typing import Literal

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.adapters.targets import TARGETS
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting
from megatron_mixcpt.objective import Objective
from megatron_mixcpt.parallel_sizes import ParallelSizes, check_batches, check_layout, global_batch_size
from megatron_mixcpt.planning.layers import LayerShape
from megatron_mixcpt.planning.shapes import ModelShape

RecomputedModule = Literal["core_attn", "layernorm", "mlp", "moe", "moe_act"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of the run, by the trainer's flags."""

    num_gpus: int | None = None
    """GPUs of the run, as many as torchrun starts ranks. Default: those that hold one copy of the model."""

    tensor_model_parallel_size: int = 1
    """Ranks that share each layer."""

    pipeline_model_parallel_size: int = 1
    """Stages that the layers are divided into."""

    context_parallel_size: int = 1
    """Ranks that share each sequence."""

    expert_model_parallel_size: int = 1
    """Groups of ranks that the experts are divided into."""

    expert_tensor_parallel_size: int | None = None
    """Ranks that share each expert. Default: as many as share each layer."""

    moe_grouped_gemm: bool = False
    """All experts of a rank in grouped products, also with Transformer Engine; --recompute-modules moe_act asks for
    it."""

    num_virtual_stages_per_pipeline_rank: int | None = None
    """Chunks of layers on each rank of an interleaved pipeline. Default: not interleaved."""

    num_layers_per_virtual_pipeline_stage: int | None = None
    """Layers in each chunk of an interleaved pipeline, instead of the number of chunks."""

    global_batch_size: int | None = None
    """Sequences in each step. Default: one microbatch for each copy of the model."""

    micro_batch_size: int = 1
    """Sequences in each microbatch."""

    seq_length: int = 2048
    """Tokens in each sequence."""

    max_position_embeddings: int | None = None
    """The longest sequence that the model is used with. Default: as in config.json."""

    bf16: bool = False
    """Weights and activations in bfloat16. Without it they are in float32."""

    sequence_parallel: bool = False
    """Divide the hidden states between layers over the tensor-parallel ranks."""

    use_distributed_optimizer: bool = False
    """Shard the optimizer's state over the data-parallel ranks."""

    gradient_accumulation_fusion: bool = True
    """Layers add weight gradients directly to the gradient buffer (needs Apex; the trainer turns it off without)."""

    transformer_impl: Literal["transformer_engine", "local"] = "transformer_engine"
    """Implementation of the layers on the machine that trains."""

    recompute_activations: bool = False
    """Short for --recompute-granularity selective."""

    recompute_granularity: Literal["full", "selective"] | None = None
    """full: recompute complete layers in the backward pass; selective: recompute only --recompute-modules."""

    recompute_method: Literal["uniform", "block"] | None = None
    """uniform: recompute all layers, in groups of --recompute-num-layers; block: recompute the first
    --recompute-num-layers of each chunk and save the others."""

    recompute_num_layers: int | None = None
    """See --recompute-method."""

    recompute_modules: tuple[RecomputedModule, ...] = ("core_attn",)
    """What selective recomputation recomputes."""

    objective: Objective = setting(default_factory=Objective)

    lora: LoRASettings = setting(default_factory=LoRASettings)

    teacher: str | None = None
    """Hugging Face folder of the frozen teacher, of the same sizes as the model. With --lora-rank it is a second model
    in memory; by default the model with its adapters off is the teacher, and there is none."""

    teacher_offload: Literal["none", "cpu"] = "none"
    """cpu: keep the teacher's layers in host memory, except for two at a time."""

    teacher_fp8: bool = False
    """Run the teacher's layers in 8 bits; a copy in 8 bits then lies beside each of their weights on the device."""

    document_masking: bool = False
    """Restrict attention to each document; without Transformer Engine, a dense mask does it."""

    loss_chunk_tokens: int = 0
    """Compute the loss from the logits of N tokens at a time. 0: all logits of a microbatch at once."""

    def __post_init__(self) -> None:
        if self.loss_chunk_tokens < 0:
            raise ConfigError(f"--loss-chunk-tokens {self.loss_chunk_tokens}: must be at least 0")
        if self.teacher_offload == "cpu" and not self.objective.runs_teacher:
            raise ConfigError("--teacher-offload cpu: no teacher runs with this objective; remove it")
        if self.teacher_fp8 and not self.objective.runs_teacher:
            raise ConfigError("--teacher-fp8: no teacher runs with this objective; remove it")
        if self.teacher_fp8 and self.transformer_impl != "transformer_engine":
            raise ConfigError("--teacher-fp8 needs --transformer-impl transformer_engine")
        if self.lora.is_given:
            self._check_adapters()

    def _check_adapters(self) -> None:
        """What the trainer refuses with adapters, and what the plan cannot know of them."""
        if self.lora.lora_adapter is not None:
            raise ConfigError(
                f"--lora-adapter {self.lora.lora_adapter}: give what its adapter_config.json says as --lora-rank and "
                "--lora-target-modules instead"
            )
        if self.objective.distillation == "l2":
            raise ConfigError("--distillation l2 cannot be used with --lora-rank; give --distillation lssd, kd or none")
        given = {"--teacher-offload cpu": self.teacher_offload == "cpu", "--teacher-fp8": self.teacher_fp8}
        for flag in (flag for flag, is_given in given.items() if is_given and self.teacher is None):
            raise ConfigError(
                f"{flag} with --lora-rank: the teacher is the student with its adapters off; remove it, or give a "
                "second model as --teacher"
            )

    @property
    def bytes_per_number(self) -> int:
        """Bytes of each weight and activation."""
        return 2 if self.bf16 else 4

    @property
    def holds_teacher(self) -> bool:
        """Whether a teacher's weights are in memory beside the student's, which with its adapters off may be it."""
        return self.objective.holds_teacher and (not self.lora.is_given or self.teacher is not None)

    @property
    def recomputed_modules(self) -> tuple[str, ...]:
        """The parts of each layer that the backward pass recomputes."""
        selective = self.recompute_activations or self.recompute_granularity == "selective"
        return self.recompute_modules if selective else ()

    @property
    def recomputes_layers(self) -> bool:
        """Whether the backward pass recomputes complete layers."""
        return self.recompute_granularity == "full" and not self.recompute_activations


@dataclass(frozen=True)
class PlannedRun:
    """A model in a layout that trains: see :meth:`of`."""

    model: ModelShape
    layout: Layout
    sizes: ParallelSizes

    @classmethod
    def of(cls, model: ModelShape, layout: Layout) -> "PlannedRun":
        """A model in a layout. Raises ConfigError where the trainer would refuse it."""
        settings = vars(model) | {name: value for name, value in vars(layout).items() if value is not None}
        sizes = ParallelSizes.of(settings, layout.num_gpus)
        check_layout(sizes, settings)
        check_batches(sizes, settings)
        check_targets(model, layout.lora)
        return cls(model, layout, sizes)

    @property
    def num_microbatches(self) -> int:
        """Microbatches of each rank in each step."""
        batch = global_batch_size(self.sizes, vars(self.layout))
        return batch // (self.layout.micro_batch_size * self.sizes.data)

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch on each rank."""
        return self.layout.micro_batch_size * self.layout.seq_length // self.sizes.context

    @property
    def routed_rows(self) -> int:
        """Rows that a rank's experts get of a microbatch, where routers spread the tokens evenly.

        Each token goes to several experts; ranks that share an expert get the rows of all of them.
        """
        return self.tokens // self.sizes.tensor * self.model.moe_router_topk * self.sizes.expert_tensor

    @property
    def local_experts(self) -> int:
        """Experts of each layer on a rank; 0 in a dense model."""
        return self.model.num_experts // self.sizes.expert

    @property
    def makes_weight_gradients(self) -> bool:
        """Whether the model's own weights are trained. Those of adapters are too small to count."""
        return not self.layout.lora.is_given

    @property
    def gathers_keys(self) -> bool:
        """Whether attention gathers keys and values of the whole sequence; Transformer Engine passes them round."""
        return self.sizes.context > 1 and self.layout.transformer_impl == "local"

    @property
    def makes_document_mask(self) -> bool:
        """Whether microbatches have a dense mask."""
        return self.layout.document_masking and self.layout.transformer_impl == "local"

    @property
    def layers_per_chunk(self) -> int:
        """Layers that pass a microbatch on together."""
        return self.model.num_layers // (self.sizes.pipeline * self.sizes.chunks)

    def chunks_of(self, stage: int) -> list[tuple[LayerShape, ...]]:
        """The layers of each chunk of a stage, in order."""
        starts = [(chunk * self.sizes.pipeline + stage) * self.layers_per_chunk for chunk in range(self.sizes.chunks)]
        return [self.model.layers[start : start + self.layers_per_chunk] for start in starts]

    def layers_of(self, stage: int) -> list[LayerShape]:
        """All layers of a stage."""
        return [layer for chunk in self.chunks_of(stage) for layer in chunk]

    def chunks_in_flight(self, stage: int) -> int:
        """The most chunks whose activations a stage holds at once: 1F1B, or the engine's interleaved schedule.

        The counts are those of megatron/core/pipeline_parallel/schedules.py (``get_pp_rank_microbatches``).
        """
        later = self.sizes.pipeline - stage - 1
        if self.sizes.chunks == 1:
            return min(later + 1, self.num_microbatches)
        warmup = 2 * later + (self.sizes.chunks - 1) * self.sizes.pipeline
        return min(warmup + 1, self.num_microbatches * self.sizes.chunks)


def check_targets(model: ModelShape, lora: LoRASettings) -> None:
    """Raise ConfigError where the model has no linear layer of a name that adapters are asked for."""
    there = sorted({linear.name for layer in model.layers for linear in layer.linears}, key=list(TARGETS).index)
    if lora.is_given and (missing := lora.missing_from(there)):
        raise ConfigError(
            f"--lora-target-modules {missing}: the model has no such module outside of its routed experts; choose "
            f"from {', '.join(there)}"
        )
