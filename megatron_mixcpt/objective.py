"""What is learned: the options of the Mix-CPT loss, declared here once, as flags and as the losses take them.

To add an option: a field here, its checks in ``__post_init__``, and the mathematics that reads it. An option that the
passes over the logits depend on belongs to :class:`Divergence` (``losses/divergence.py`` has its formulas), any other
to :class:`Objective`, which is handed down whole: to the losses, to the planner and to the record of the run.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import described, setting

Direction = Literal["reverse", "forward"]


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The divergence between student and teacher.

    KL(p || q) if reverse, KL(q || p) if forward, between softmaxes of logits / temperature: p is the student's, q the
    teacher's (with lssd, after the swap).
    """

    direction: Direction = setting(default="reverse", flag="--divergence")
    """Divergence that lssd and kd minimize. reverse: KL(student || teacher), as in the paper; forward:
    KL(teacher || student)."""

    temperature: float = setting(default=1.0, flag="--distillation-temperature")
    """Temperature of both models' distributions in the divergence. The divergence is multiplied by its square, so that
    gradients keep their size; next-token prediction always uses temperature 1."""

    teacher_entropy: bool = setting(default=False, flag="--log-teacher-entropy", decides=False)
    """Also log the entropy of the teacher's distribution. Costs one more sum over the logits and four more bytes per
    token in the loss's collective."""

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ConfigError(f"--divergence {self.direction}: must be one of {', '.join(get_args(Direction))}")
        if not 0.0 < self.temperature < math.inf:
            raise ConfigError(
                f"--distillation-temperature {self.temperature}: must be greater than 0; 1 leaves the logits as they "
                "are, higher values flatten both distributions"
            )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The training objective (Mix-CPT sections 2.2 and 3.3)."""

    distillation: Literal["lssd", "kd", "l2", "none"] = "lssd"
    """lssd: logit swap self-distillation; kd: distillation without the swap; l2: penalty on the distance to the
    original weights, without a forward pass of the teacher; none: next-token prediction only."""

    alpha: float = 0.8
    """Weight of next-token prediction; distillation has weight 1 - alpha (Eq. 7)."""

    distillation_fraction: float = 1.0
    """Fraction of the samples that are distilled, chosen by seed and sample index; the others are trained with
    next-token prediction only (the paper's Half is 0.5)."""

    l2_coefficient: float = 1e-4
    """Coefficient of the squared distance to the original weights with --distillation l2."""

    divergence: Divergence = setting(default_factory=Divergence)

    def __post_init__(self) -> None:
        for flag, value in (("--alpha", self.alpha), ("--distillation-fraction", self.distillation_fraction)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{flag} {value}: must be between 0 and 1")
        if self.l2_coefficient < 0.0:
            raise ConfigError(f"--l2-coefficient {self.l2_coefficient}: must be at least 0")
        if not self.compares_models:
            self._check_divergence_is_not_set()

    def _check_divergence_is_not_set(self) -> None:
        """A choice that the method does not use is a misunderstanding."""
        for flag, default in described(Divergence()).items():
            if (value := described(self.divergence)[flag]) != default:
                raise ConfigError(
                    f"{flag} {value} is not used with --distillation {self.distillation}, which has no divergence "
                    "between student and teacher: use --distillation lssd or kd, or remove it"
                )

    @property
    def compares_models(self) -> bool:
        """Whether the method has a divergence between student and teacher."""
        return self.distillation in ("lssd", "kd")

    @property
    def swaps(self) -> bool:
        """Whether the teacher's largest logit and that of the label are exchanged (Eq. 4)."""
        return self.distillation == "lssd"

    @property
    def runs_teacher(self) -> bool:
        """Whether any sample needs the teacher's forward pass."""
        return self.compares_models and self.alpha < 1.0 and self.distillation_fraction > 0.0

    @property
    def anchors_weights(self) -> bool:
        """Whether the distance to the original weights is penalized."""
        return self.distillation == "l2" and self.l2_coefficient > 0.0

    @property
    def holds_teacher(self) -> bool:
        """Whether the teacher's weights are in memory: for its forward pass, or as the anchor of the L2 penalty."""
        return self.runs_teacher or self.anchors_weights
