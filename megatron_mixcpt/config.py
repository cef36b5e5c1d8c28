"""Settings of each training stage: one dataclass, checked when it is built, that also makes the flags.

The field docstrings are the help texts; see ``flags.py``. The options of the loss are in ``objective.py``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from megatron_mixcpt.adapters.settings import LoRASettings
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting
from megatron_mixcpt.objective import Objective


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What all trainings share: checkpoints that survive, and numbers that are watched (docs/how-to/recover.md)."""

    keep_last: int | None = None
    """Keep only the newest N complete checkpoints. Default: keep all."""

    resume_with_changes: bool = False
    """Resume from a checkpoint of a run with other data or another loss: print the differences instead of refusing."""

    loss_spike_sigma: float = 6.0
    """Warn when a loss exceeds the mean of the last 100 by N standard deviations, naming the samples; 0 disables."""

    deterministic: bool = False
    """Bitwise reproducible at a fixed layout (sets the engine's --deterministic-mode and what it requires)."""

    verbose: bool = False
    """Show everything that the engine prints on the terminal, too; by default it is in the rank logs only
    (SAVE/logs)."""

    dry_run: bool = False
    """Check everything, print what the run would do, and stop."""

    assume_ranks: int | None = None
    """With --dry-run: check the run as N ranks would (torchrun's --nproc-per-node x --nnodes), on one process without
    torchrun, such as on a login node without a GPU."""

    lora: LoRASettings = setting(default_factory=LoRASettings)

    def __post_init__(self) -> None:
        if self.assume_ranks is not None:
            self._check_assumed_ranks(self.assume_ranks)
        if self.keep_last is not None and self.keep_last < 1:
            raise ConfigError(f"--keep-last {self.keep_last}: must be greater than 0 (checkpoints to keep)")
        if self.loss_spike_sigma < 0.0:
            raise ConfigError(f"--loss-spike-sigma {self.loss_spike_sigma}: must be at least 0; 0 disables the warning")

    def _check_assumed_ranks(self, num_ranks: int) -> None:
        if num_ranks < 1:
            raise ConfigError(f"--assume-ranks {num_ranks}: must be greater than 0, the number of ranks of the run")
        if not self.dry_run:
            raise ConfigError(
                f"--assume-ranks {num_ranks} is for --dry-run: a run has as many ranks as torchrun starts (torchrun "
                "--nproc-per-node, --nnodes); add --dry-run, or remove it"
            )


@dataclass(frozen=True, kw_only=True)
class MixCPTConfig(RunConfig):
    """Continual pre-training: the models, the mixture and how the run goes over it."""

    hf_model: str = ""
    """Required. Hugging Face folder (config.json, tokenizer, safetensors) that the student starts from. It also sets
    the architecture, the vocabulary and, unless --teacher is given, the frozen teacher."""

    mixture: str = ""
    """Required. Folder written by tools/preprocess_mixture.py: indexed datasets of the three kinds, or of named sources
    of them, and mixture.json."""

    teacher: str | None = None
    """Hugging Face folder of the frozen teacher. Default: the --hf-model folder."""

    objective: Objective = setting(default_factory=Objective)

    rope_scaling: str | None = setting(default=None, metavar="JSON")
    """Lengthen the student's context with another rotary embedding: a JSON object with the fields of rope_parameters in
    config.json, such as '{"rope_type": "yarn", "factor": 4.0}'. Base and original length are the model's unless given.
    The longest sequence is factor x original length, or --max-position-embeddings N. The teacher keeps its own
    embedding. The result is in the checkpoint's hf/config.json, from which all later stages and the export take it."""

    teacher_offload: Literal["none", "cpu"] = "none"
    """cpu: keep the teacher's layers in host memory and copy each to the device while the previous one runs. The
    device then holds two of them. With fewer than about 10,900 tokens in a microbatch the copies take longer than the
    layers (in bfloat16, at 50 GB/s)."""

    teacher_fp8: bool = False
    """Run the teacher's layers in 8-bit floating point with per-tensor scaling; its weights stay bfloat16, with an
    8-bit copy beside them (with --teacher-offload cpu: of one at a time). Needs Transformer Engine and a GPU that
    supports it, and is refused elsewhere."""

    loss_chunk_tokens: int = 0
    """Compute the loss directly from hidden states and output weights, with the logits of N tokens at a time, so that
    the memory of the logits no longer grows with the sequence. Each chunk reads and writes the output weight's
    gradient: 512 is a good choice on a CPU, 2048 or more on a GPU. 0: all logits at once, which is as fast or faster
    while they fit (docs/evidence/performance.md)."""

    epochs: str = "1"
    """Passes over the mixture when neither --train-iters nor --train-samples is given: a number for all, or one by kind
    or source such as cpt.law=2,sft=3 (what is not named: 1). With --train-iters or --train-samples, epochs by kind
    only set the mixing proportions."""

    mixture_weights: str | None = None
    """Shares of the run's tokens by kind or source, such as cpt.law=0.5,cpt.replay=0.2,sft=0.2,dpo=0.1 (what is not
    named gets none; sources share their kind's in proportion to their tokens). Default: each in proportion to its
    tokens. --epochs still sets the length of the run: small datasets are repeated, large ones cut."""

    validation: list[str] = setting(default_factory=list, metavar="NAME=PATH", action="extend")
    """Additional validation set, measured completely before the first step and at each --eval-interval, for the
    student and for the teacher; can be given several times. PATH is a dataset of a mixture (DIR/cpt, DIR/cpt.law) or
    documents in any format that preprocessing reads (text, JSONL, a folder...), which are tokenized at the start."""

    document_masking: bool = False
    """Restrict attention to each document and restart positions at each, so that every document of a sequence is read
    as if it stood alone. Uses Transformer Engine's packed sequences, or a dense mask without it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--hf-model", self.hf_model), ("--mixture", self.mixture)):
            if not value:
                raise ConfigError(
                    f"{flag} is missing: give the folder of the {flag.strip('-').replace('hf-', 'base ')}"
                )
        if not self.objective.runs_teacher:
            self._check_no_flag_of_a_teacher()
        if self.lora.is_given:
            self._check_adapters()
        if self.loss_chunk_tokens < 0:
            raise ConfigError(
                f"--loss-chunk-tokens {self.loss_chunk_tokens}: must be at least 0; give the number of tokens whose "
                "logits are held at a time, or 0 for all of them"
            )

    def _check_no_flag_of_a_teacher(self) -> None:
        given = {"--teacher-offload cpu": self.teacher_offload == "cpu", "--teacher-fp8": self.teacher_fp8}
        objective = self.objective
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise ConfigError(
                f"{flag}: no teacher runs with --distillation {objective.distillation}, --alpha {objective.alpha} "
                f"and --distillation-fraction {objective.distillation_fraction}; remove it"
            )

    def _check_adapters(self) -> None:
        """What a student that is its own teacher cannot do, and a frozen one need not."""
        if self.objective.distillation == "l2":
            raise ConfigError(
                "--distillation l2 penalizes the distance to the original weights, which --lora-rank keeps as they "
                "are; give --distillation lssd, kd or none"
            )
        reasons = {
            "--teacher-offload cpu": (self.teacher_offload == "cpu", "the teacher is the student with adapters off"),
            "--teacher-fp8": (self.teacher_fp8, "the teacher is the student with adapters off, in its precision"),
            "--rope-scaling": (self.rope_scaling is not None, "the teacher keeps its own rotary embedding"),
        }
        for flag, (is_given, reason) in reasons.items() if self.teacher is None else ():
            if is_given:
                raise ConfigError(f"{flag} with --lora-rank: {reason}; remove it, or give a second model as --teacher")

    @property
    def teacher_dir(self) -> str:
        """Folder of the weights that the student is compared with: the teacher's, or those of the base model."""
        return self.teacher or self.hf_model


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(RunConfig):
    """What both trainers of format alignment share (Mix-CPT section 2.3)."""

    kind: ClassVar[str]
    """Of the records: ``sft`` or ``dpo``."""

    data: list[str] = setting(default_factory=list, is_flag=False)  # the flag is that of the kind of record

    hf_model: str | None = None
    """Hugging Face folder to start from. Alternatively, --load names a checkpoint of which only the weights are used.
    Training resumes from --save if it has a checkpoint."""

    chat_template: str | None = None
    """llama3, chatml, zephyr or a Jinja file. Default: the tokenizer's template. It is saved with the model."""

    reading: ReadingSettings = setting(default_factory=ReadingSettings)

    workers: int | None = None
    """Number of processes that encode the samples, once, into --data-cache-path (default: SAVE/cache). Default: as many
    as the processor cores that the first rank may use."""

    epochs: int = 2
    """Passes over the samples, each in a different order (the paper's appendix uses 2)."""

    packing: bool = True
    """Lay several samples of a batch into each row: the same batches and steps, less padding."""

    held_out: float = 0.0
    """Fraction of the samples that is held out for validation, chosen by content and measured before the first step
    and at each --eval-interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: must be at least 1")
        if self.epochs < 1:
            raise ConfigError(f"--epochs {self.epochs}: must be greater than 0, the number of passes over the samples")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"--held-out {self.held_out}: must be at least 0 and below 1, a fraction of the samples")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(AlignmentConfig):
    """Supervised fine-tuning on the tokens of the assistant's turns (Eq. 10)."""

    kind: ClassVar[str] = "sft"

    data: list[str] = setting(default_factory=list, flag="--sft", metavar="PATH")
    """Required. Files of conversations, in any format that preprocessing reads, or as written by selection."""

    supervise: Literal["all", "last"] = "all"
    """Turns of the assistant to learn: all, or the last of each conversation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("--sft is missing: give the files of conversations to train on")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(AlignmentConfig):
    """Direct preference optimization against the model that training starts from (Eq. 11)."""

    kind: ClassVar[str] = "dpo"

    data: list[str] = setting(default_factory=list, flag="--dpo", metavar="PATH")
    """Required. Files of preference pairs, in any format that preprocessing reads, or as written by selection."""

    beta: float = 0.1
    """Strength of the penalty on deviating from the reference model (the paper: 0.01 for Llama-3-8B, 0.1 for
    Qwen2-7B)."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: Rafailov et al. 2023; ipo: Azar et al. 2023, on log-probabilities per token."""

    dpo_label_smoothing: float = setting(default=0.0, flag="--label-smoothing")
    """Assumed fraction of pairs whose labels are swapped, with --loss sigmoid."""

    sft_coefficient: float = 0.0
    """Weight of an added SFT loss on the chosen response (mean per token)."""

    precompute_reference: bool = False
    """Compute the reference model's log-probabilities once, before training; then only the policy is in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("--dpo is missing: give the files of preference pairs to train on")
        if self.beta <= 0.0:
            raise ConfigError(f"--beta {self.beta}: must be greater than 0, the pull towards the reference")
        if not 0.0 <= self.dpo_label_smoothing < 0.5:
            raise ConfigError(f"--label-smoothing {self.dpo_label_smoothing}: must be at least 0 and below 0.5")
        if self.dpo_label_smoothing and self.loss == "ipo":
            raise ConfigError(
                f"--label-smoothing {self.dpo_label_smoothing} is not used with --loss ipo: use --loss sigmoid, or "
                "remove it"
            )
        if self.lora.lora_adapter and not self.precompute_reference:
            raise ConfigError(
                f"--lora-adapter {self.lora.lora_adapter}: the reference is the model that training starts from, which "
                "the model with its adapters off is not then; add --precompute-reference, or merge the adapters first"
            )
        if self.sft_coefficient < 0.0:
            raise ConfigError(f"--sft-coefficient {self.sft_coefficient}: must be at least 0")
