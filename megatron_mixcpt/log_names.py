"""Names of the curves that training writes to TensorBoard and the report reads."""

from collections.abc import Iterable

LOSS = "loss"
"""What is minimised."""
STUDENT_LOSS = "ntp loss"
TEACHER_LOSS = "teacher ntp loss"
DIVERGENCE = "lssd loss"
SWAPPED_FRACTION = "swapped fraction"
AGREEMENT = "top-1 agreement"
ACCURACY = "accuracy"
"""Of DPO: the share of pairs whose chosen response is ahead."""
REWARD_MARGIN = "reward margin"
"""Of DPO: the chosen response's reward less the rejected one's."""
LOAD_BALANCING_LOSS = "load balancing loss"
"""Of a mixture of experts, before its coefficient; the mean over layers, as are the next three."""
SEQUENCE_LOAD_BALANCING_LOSS = "sequence load balancing loss"
GLOBAL_LOAD_BALANCING_LOSS = "global load balancing loss"
ROUTER_Z_LOSS = "router z loss"
ROUTER_LOSSES = (LOAD_BALANCING_LOSS, SEQUENCE_LOAD_BALANCING_LOSS, GLOBAL_LOAD_BALANCING_LOSS, ROUTER_Z_LOSS)

EXPERT_LOAD = "expert load max/mean"
"""Of a mixture of experts: tokens of the largest expert over the mean of its layer, in the layer where it is worst."""
IDLE_EXPERTS = "experts without tokens"
"""Share of all experts to which no token of the step went."""


def of_dataset(curve: str, dataset: str) -> str:
    """A curve over the samples of one dataset of the mixture alone: a kind of data, or a named source of one."""
    return f"{curve} {dataset}"


def of_validation(curve: str, name: str) -> str:
    """A curve on the validation set ``name``, as the engine calls it."""
    return f"{curve} validation-{name}"


def validation_sets(curve: str, curves: Iterable[str]) -> list[str]:
    """The validation sets that have ``curve`` among ``curves``."""
    start = of_validation(curve, "")
    names = [name.removeprefix(start) for name in curves if name.startswith(start)]
    return [name for name in names if " " not in name]  # the rest are the engine's: over samples, or as perplexities
