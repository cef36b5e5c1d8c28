"""Settings of each training stage: one dataclass, checked when built, that also makes the flags.

The field docstrings are the help texts; see ``flags.py``.
"""

import math
from dataclasses import dataclass
from typing import Literal

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting


@dataclass(kw_only=True)
class RunConfig:
    """What all trainings share: checkpoints that survive, and numbers that are watched (docs/operations.md)."""

    keep_last: int | None = None
    """Delete older checkpoints once so many newer ones are whole. Default: keep all."""

    resume_with_changes: bool = False
    """Go on from a checkpoint of a run with other data or another loss: what differs is printed, not refused."""

    loss_spike_sigma: float = 6.0
    """Report an iteration whose loss is so many standard deviations above the mean of the last 100, with its samples;
    0: never."""

    deterministic: bool = False
    """The same bits twice at the same layout: the engine's --deterministic-mode with what that asks for."""

    def __post_init__(self) -> None:
        if self.keep_last is not None and self.keep_last < 1:
            raise ConfigError(f"--keep-last {self.keep_last}: give the number of checkpoints to keep, 1 or more")
        if self.loss_spike_sigma < 0.0:
            raise ConfigError(f"--loss-spike-sigma {self.loss_spike_sigma} is negative: give 0 to report nothing")


@dataclass(kw_only=True)
class MixCPTConfig(RunConfig):
    """What the student learns from, and how strongly (Mix-CPT sections 2.2 and 3.3)."""

    hf_model: str | None = None
    """Required. Hugging Face folder (config.json, tokenizer, safetensors) that the student starts from; it also sets
    the architecture, the vocabulary and, unless --teacher says otherwise, the frozen teacher."""

    mixture: str | None = None
    """Required. Folder written by tools/preprocess_mixture.py: indexed datasets of the three kinds and mixture.json."""

    teacher: str | None = None
    """Hugging Face folder of the frozen teacher. Default: the --hf-model folder."""

    distillation: Literal["lssd", "kd", "l2", "none"] = "lssd"
    """lssd: logit swap self-distillation; kd: the same without the swap; l2: penalty on the distance to the
    original weights, no teacher forward; none: plain next-token prediction."""

    alpha: float = 0.8
    """Weight of next-token prediction; 1 - alpha weighs the distillation (Eq. 7)."""

    distillation_fraction: float = 1.0
    """Share of the samples that are distilled, chosen by seed and sample index; the others train on next-token
    prediction alone (the paper's Half is 0.5)."""

    divergence: Literal["reverse", "forward"] = "reverse"
    """Which divergence lssd and kd minimise: reverse is KL(student || teacher), the paper's; forward is
    KL(teacher || student)."""

    distillation_temperature: float = 1.0
    """Both models' logits are divided by it in the divergence of lssd and kd, which is then multiplied by its square;
    next-token prediction stays at 1."""

    l2_coefficient: float = 1e-4
    """Factor of the squared distance to the original weights with --distillation l2."""

    teacher_offload: Literal["none", "cpu"] = "none"
    """cpu: keep the teacher's layers in host memory and bring each to the device while the one before it runs; the
    device then holds two of them."""

    teacher_fp8: bool = False
    """Run the teacher's layers in 8-bit floating point, scaled by tensor, where GPU and Transformer Engine can; its
    weights stay bfloat16. Refused elsewhere."""

    loss_chunk_tokens: int = 0
    """Compute the loss straight from hidden states and output weights, with the logits of so many tokens at a time
    (512 is a good choice): the memory of the logits no longer grows with the sequence. Default: 0, all logits at once,
    which is as fast or faster while they fit (docs/performance.md)."""

    epochs: str = "1"
    """Passes over the mixture when neither --train-iters nor --train-samples is given: a number for all kinds, or one
    per kind such as cpt=1,sft=3,dpo=3 (a kind that is not named: 1). With --train-iters or --train-samples those of
    the kinds only set the proportions of the kinds."""

    mixture_weights: str | None = None
    """Parts of the run's tokens per kind, such as cpt=0.7,sft=0.2,dpo=0.1 (a kind that is not named: none). Default:
    each kind in proportion to its tokens. The run stays as long as --epochs makes it: small kinds are repeated, large
    ones cut."""

    log_teacher_entropy: bool = False
    """Report the entropy of the teacher's distribution as well: one more sum over the logits, four more bytes per token
    in the loss's collective."""

    validation: list[str] = setting(default_factory=list, metavar="NAME=PATH", action="extend")
    """Measure this set as well, whole, before the first step and at each --eval-interval, for the student and for the
    teacher; may be given several times. PATH is a kind of a preprocessed mixture (DIR/cpt) or documents as
    preprocessing reads them (text, JSONL, a folder...), which are tokenized at the start."""

    document_masking: bool = False
    """Keep attention within documents and let positions begin anew in each: a sequence's documents are read as if each
    stood alone. A dense mask without Transformer Engine, which packs the documents by itself."""

    dry_run: bool = False
    """Check everything, print what the run would do, and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value in (("--hf-model", self.hf_model), ("--mixture", self.mixture)):
            if not value:
                raise ConfigError(
                    f"{flag} is missing: give the folder of the {flag.strip('-').replace('hf-', 'base ')}"
                )
        for flag, value in (("--alpha", self.alpha), ("--distillation-fraction", self.distillation_fraction)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{flag} {value} is outside [0, 1]: it is a share")
        if not 0.0 < self.distillation_temperature < math.inf:
            raise ConfigError(
                f"--distillation-temperature {self.distillation_temperature} is no positive number: 1 leaves the "
                "logits as they are, more flattens both distributions"
            )
        self._check_divergence_is_used()
        if not self.runs_teacher:
            self._check_no_flag_of_a_teacher()
        if self.loss_chunk_tokens < 0:
            raise ConfigError(
                f"--loss-chunk-tokens {self.loss_chunk_tokens} is negative: give the number of tokens whose logits are "
                "held at a time, or 0 for all of them"
            )
        if self.l2_coefficient < 0.0:
            raise ConfigError(f"--l2-coefficient {self.l2_coefficient} is negative: it would push the weights apart")

    def _check_no_flag_of_a_teacher(self) -> None:
        given = {"--teacher-offload cpu": self.teacher_offload == "cpu", "--teacher-fp8": self.teacher_fp8}
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise ConfigError(
                f"{flag}: no teacher runs with --distillation {self.distillation}, --alpha {self.alpha} "
                f"and --distillation-fraction {self.distillation_fraction}; leave the flag out"
            )

    def _check_divergence_is_used(self) -> None:
        """A choice that the method has no use for is a misunderstanding."""
        for flag, value, default in (
            ("--divergence", self.divergence, "reverse"),
            ("--distillation-temperature", self.distillation_temperature, 1.0),
        ):
            if self.distillation in ("l2", "none") and value != default:
                raise ConfigError(
                    f"{flag} {value} with --distillation {self.distillation}: there is no divergence between student "
                    "and teacher in it; give --distillation lssd or kd, or leave the flag out"
                )

    @property
    def teacher_dir(self) -> str | None:
        """Folder of the weights the student is held to: the teacher's, or the base model's own."""
        return self.teacher or self.hf_model

    @property
    def runs_teacher(self) -> bool:
        """Whether any sample needs the teacher's forward pass."""
        return self.distillation in ("lssd", "kd") and self.alpha < 1.0 and self.distillation_fraction > 0.0

    @property
    def holds_teacher(self) -> bool:
        """Whether the teacher's weights are in memory: for its forward pass, or as the anchor of the L2 penalty."""
        return self.runs_teacher or (self.distillation == "l2" and self.l2_coefficient > 0.0)


@dataclass(kw_only=True)
class AlignmentConfig(RunConfig):
    """What both trainers of format alignment share (Mix-CPT section 2.3)."""

    hf_model: str | None = None
    """Hugging Face folder to start from. The alternative is --load, a checkpoint of which only the weights are taken;
    training itself resumes from --save, where that has a checkpoint."""

    chat_template: str | None = None
    """llama3, chatml, zephyr or a Jinja file. Default: the tokenizer's own. It is saved with the model."""

    epochs: int = 2
    """Passes over the samples, each in an order of its own (the paper's appendix has 2)."""

    packing: bool = True
    """Lay each batch's samples into rows of the sequence length: the same batches and steps, less padding."""

    held_out: float = 0.0
    """Share of the samples that is not trained on but measured, before the first step and at each --eval-interval;
    chosen by content."""

    dry_run: bool = False
    """Check everything, print what the run would do, and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1:
            raise ConfigError(f"--epochs {self.epochs}: give a number of passes over the samples, 1 or more")
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"--held-out {self.held_out} is outside [0, 1): it is a share of the samples")


@dataclass(kw_only=True)
class SFTConfig(AlignmentConfig):
    """Supervised fine-tuning on the tokens of the assistant's turns (Eq. 10)."""

    data: list[str] = setting(default_factory=list, flag="--sft", metavar="PATH")
    """Required. Files of conversations, as preprocessing reads them or selection writes them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("--sft is missing: give the files of conversations to train on")


@dataclass(kw_only=True)
class DPOConfig(AlignmentConfig):
    """Direct preference optimization against the model that training starts from (Eq. 11)."""

    data: list[str] = setting(default_factory=list, flag="--dpo", metavar="PATH")
    """Required. Files of preference pairs, as preprocessing reads them or selection writes them."""

    beta: float = 0.1
    """How strongly the policy is held to the reference model (the paper: 0.01 for Llama-3-8B, 0.1 for Qwen2-7B)."""

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: Rafailov et al. 2023; ipo: Azar et al. 2023, on log-probabilities per token."""

    dpo_label_smoothing: float = setting(default=0.0, flag="--label-smoothing")
    """Share of the pairs taken to be labelled the wrong way round, with --loss sigmoid."""

    sft_coefficient: float = 0.0
    """Adds so much of the chosen responses' mean loss per token."""

    precompute_reference: bool = False
    """Compute the reference model's log-probabilities once, before training; then only the policy is in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("--dpo is missing: give the files of preference pairs to train on")
        if self.beta <= 0.0:
            raise ConfigError(f"--beta {self.beta} is not positive: without it nothing holds the policy")
        if not 0.0 <= self.dpo_label_smoothing < 0.5:
            raise ConfigError(f"--label-smoothing {self.dpo_label_smoothing} is outside [0, 0.5): it is a share")
        if self.dpo_label_smoothing and self.loss == "ipo":
            raise ConfigError("--label-smoothing goes with --loss sigmoid: ipo has none; leave it out")
        if self.sft_coefficient < 0.0:
            raise ConfigError(f"--sft-coefficient {self.sft_coefficient} is negative: give 0 or more")
