"""Which divergence between student and teacher is taken, and the numbers per token that its value and gradient need."""

from typing import Literal, NamedTuple, get_args

from torch import Tensor

Direction = Literal["reverse", "forward"]


class Divergence(NamedTuple):
    """KL(p || q) if reverse (the paper's), KL(q || p) if forward, between softmaxes of logits / temperature.

    p is the student's, q the teacher's after the swap. The divergence is multiplied by temperature^2, so that its
    gradient keeps its size (Hinton et al. 2015, section 2). Next-token prediction is always at temperature 1. With
    `teacher_entropy` the entropy of q is measured as well, which takes one more sum.
    """

    direction: Direction = "reverse"
    temperature: float = 1.0
    teacher_entropy: bool = False

    def check(self) -> "Divergence":
        """Itself, or ValueError if the direction is unknown or the temperature is not positive."""
        if self.direction not in get_args(Direction):
            raise ValueError(f"divergence {self.direction!r} is neither 'reverse' nor 'forward'")
        if not self.temperature > 0:
            raise ValueError(f"distillation temperature {self.temperature} is not positive")
        return self


class TokenStatistics(NamedTuple):
    """What the whole vocabulary says of each token: float32 `[tokens]`, `top_index` int32.

    Logits are less their model's maximum, which is the teacher's logit at `top_index`. Log-sums are those of logits
    divided by the temperature, `ntp_log_sum` the student's undivided. `mean_difference` is E_p[s - t], both divided by
    the temperature, or E_q[t - s] for the forward divergence. `teacher_entropy` is q's, in nats; 0 if not asked for.
    """

    student_max: Tensor
    student_log_sum: Tensor
    student_label: Tensor
    student_top: Tensor
    teacher_max: Tensor
    teacher_log_sum: Tensor
    teacher_label: Tensor
    mean_difference: Tensor
    ntp_log_sum: Tensor
    top_index: Tensor
    teacher_entropy: Tensor


class GradientWeights(NamedTuple):
    """Per token, float32: how much next-token prediction and the divergence weigh in the gradient.

    d/ds_v = ntp * (p_v - [v = y]) + kl * (p_v * (s_v - t~_v + offset), or p_v - q~_v), the latter at the temperature.
    """

    ntp: Tensor
    kl: Tensor
    offset: Tensor
