"""The options of the loss: what they refuse, and the models that they need."""

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.objective import Divergence, Objective

FORWARD, WARM = Divergence(direction="forward"), Divergence(temperature=2.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha": 1.5}, "--alpha 1.5: must be between 0 and 1"),
        ({"distillation_fraction": -0.1}, "--distillation-fraction -0.1: must be between 0 and 1"),
        ({"l2_coefficient": -1.0}, "--l2-coefficient -1.0: must be at least 0"),
        ({"distillation": "l2", "divergence": FORWARD}, "--divergence forward is not used with --distillation l2"),
        ({"distillation": "none", "divergence": WARM}, "--distillation-temperature 2.0 is not used with .* none"),
    ],
)
def test_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Objective(**wrong)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_temperatures_that_are_not_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"--distillation-temperature {temperature}: must be greater than 0"):
        Divergence(temperature=temperature)


def test_refuses_unknown_divergences() -> None:
    with pytest.raises(ConfigError, match="--divergence sideways: must be one of reverse, forward"):
        Divergence(direction="sideways")


def test_takes_the_ends() -> None:
    Objective(alpha=0.0, distillation_fraction=1.0, l2_coefficient=0.0)
    Objective(alpha=1.0, distillation_fraction=0.0)
    Objective(distillation="kd", divergence=Divergence(direction="forward", temperature=0.5))
    Objective(distillation="l2", divergence=Divergence(direction="reverse", temperature=1.0))


@pytest.mark.parametrize(
    ("options", "runs", "holds"),
    [
        ({}, True, True),
        ({"distillation": "kd"}, True, True),
        ({"distillation": "none"}, False, False),
        ({"alpha": 1.0}, False, False),
        ({"distillation_fraction": 0.0}, False, False),
        ({"distillation": "l2"}, False, True),
        ({"distillation": "l2", "l2_coefficient": 0.0}, False, False),
    ],
)
def test_teacher_is_there_only_where_needed(options: dict, runs: bool, holds: bool) -> None:
    objective = Objective(**options)
    assert (objective.runs_teacher, objective.holds_teacher) == (runs, holds)
