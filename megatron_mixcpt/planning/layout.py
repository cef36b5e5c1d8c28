"""How a run is laid out, as far as memory depends on it; the names are those of the trainer's flags."""

from dataclasses import dataclass
from typing import Literal

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.planning.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A model's copies and their ranks, the batch, and what trades memory for time."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    context_parallel_size: int = 1
    num_virtual_stages_per_pipeline_rank: int = 1
    """Chunks of layers to a rank, with interleaved pipelining."""
    num_gpus: int | None = None
    """Of the whole run; None: those of one copy of the model."""
    global_batch_size: int = 1920
    micro_batch_size: int = 1
    seq_length: int = 2048
    dtype: Literal["bf16", "fp32"] = "bf16"
    sequence_parallel: bool = False
    use_distributed_optimizer: bool = False
    gradient_accumulation_fusion: bool = True
    """Layers add weight gradients to the buffer themselves (needs Apex or Transformer Engine)."""
    transformer_impl: Literal["transformer_engine", "local"] = "transformer_engine"
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] = "uniform"
    recompute_num_layers: int = 1
    recompute_modules: tuple[str, ...] = ("core_attn",)
    distillation: Literal["lssd", "kd", "l2", "none"] = "lssd"
    teacher_offload: Literal["none", "cpu"] = "none"
    loss_chunk_tokens: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < (name != "loss_chunk_tokens"):
                raise ConfigError(f"--{name.replace('_', '-')} {value}: give a positive number")
        if self.sequence_parallel and self.tensor_model_parallel_size == 1:
            raise ConfigError(
                "--sequence-parallel with --tensor-model-parallel-size 1: there is nothing to split; leave one out"
            )
        if self.num_gpus is not None and self.num_gpus % self.ranks_per_copy:
            raise ConfigError(
                f"--num-gpus {self.num_gpus} is no multiple of the {self.ranks_per_copy} GPUs that one copy of the "
                "model takes (TP x PP x CP): change one of them"
            )

    @property
    def ranks_per_copy(self) -> int:
        """GPUs that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def data_parallel_size(self) -> int:
        """Copies of the model."""
        return (self.num_gpus or self.ranks_per_copy) // self.ranks_per_copy

    @property
    def num_microbatches(self) -> int:
        """Of one rank in one step."""
        return max(1, self.global_batch_size // (self.micro_batch_size * self.data_parallel_size))

    @property
    def bytes_per_number(self) -> int:
        """Of weights and activations."""
        return 2 if self.dtype == "bf16" else 4

    @property
    def tokens(self) -> int:
        """Of a microbatch, on one rank."""
        return self.micro_batch_size * self.seq_length // self.context_parallel_size

    @property
    def runs_teacher(self) -> bool:
        """Whether a frozen model runs beside the student."""
        return self.distillation in ("lssd", "kd")

    @property
    def holds_teacher(self) -> bool:
        """Whether a frozen copy of the weights is held: to run it, or as the anchor of the L2 penalty."""
        return self.distillation != "none"

    def layers_per_chunk(self, model: ModelShape) -> int:
        """Layers that pass a microbatch on at once.

        Raises:
            ConfigError: the stages do not share the layers evenly.
        """
        stages, chunks = self.pipeline_model_parallel_size, self.num_virtual_stages_per_pipeline_rank
        if model.num_layers % (stages * chunks):
            raise ConfigError(
                f"--pipeline-model-parallel-size {stages} x {chunks} chunks a rank does not divide the model's "
                f"{model.num_layers} layers: choose one that does"
            )
        return model.num_layers // (stages * chunks)

    def check(self, model: ModelShape) -> None:
        """Raise ConfigError where the model cannot be split so."""
        self.layers_per_chunk(model)
        if model.num_query_groups % self.tensor_model_parallel_size:
            raise ConfigError(
                f"--tensor-model-parallel-size {self.tensor_model_parallel_size} does not divide the model's "
                f"{model.num_query_groups} query groups: choose one that does"
            )

    def chunks_in_flight(self, stage: int) -> int:
        """How many chunks' activations a stage holds at most: 1F1B, or the engine's interleaved schedule.

        The counts are those of megatron/core/pipeline_parallel/schedules.py (``get_pp_rank_microbatches``).
        """
        later = self.pipeline_model_parallel_size - stage - 1
        chunks = self.num_virtual_stages_per_pipeline_rank
        if chunks == 1:
            return min(later + 1, self.num_microbatches)
        warmup = 2 * later + (chunks - 1) * self.pipeline_model_parallel_size
        return min(warmup + 1, self.num_microbatches * chunks)
