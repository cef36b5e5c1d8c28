"""What the settings refuse, and that the nearest valid setting is taken."""

import pytest

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.errors import ConfigError

FOLDERS = {"hf_model": "model", "mixture": "mixture"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hf_model": None}, "--hf-model is missing"),
        ({"mixture": ""}, "--mixture is missing"),
        ({"alpha": 1.5}, r"--alpha 1.5 is outside \[0, 1\]"),
        ({"distillation_fraction": -0.1}, "--distillation-fraction -0.1 is outside"),
        ({"l2_coefficient": -1.0}, "--l2-coefficient -1.0 is negative"),
        ({"teacher_fp8": True, "distillation": "none"}, "--teacher-fp8: no teacher runs with --distillation none"),
        ({"teacher_offload": "cpu", "distillation": "l2"}, "--teacher-offload cpu: no teacher runs with .* l2"),
        ({"loss_chunk_tokens": -1}, "--loss-chunk-tokens -1 is negative"),
        ({"distillation_temperature": 0.0}, "--distillation-temperature 0.0 is no positive number"),
        ({"distillation_temperature": float("nan")}, "--distillation-temperature nan is no positive number"),
        ({"distillation": "l2", "divergence": "forward"}, "--divergence forward with --distillation l2"),
        ({"distillation": "none", "distillation_temperature": 2.0}, "--distillation-temperature 2.0 with .* none"),
    ],
)
def test_refuses(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixCPTConfig(**FOLDERS | wrong)


def test_takes_the_ends() -> None:
    MixCPTConfig(**FOLDERS, alpha=0.0, distillation_fraction=1.0, l2_coefficient=0.0)
    MixCPTConfig(**FOLDERS, alpha=1.0, distillation_fraction=0.0)
    MixCPTConfig(**FOLDERS, teacher_offload="cpu")
    MixCPTConfig(**FOLDERS, distillation="kd", divergence="forward", distillation_temperature=0.5)
    MixCPTConfig(**FOLDERS, distillation="l2", divergence="reverse", distillation_temperature=1.0)


@pytest.mark.parametrize(
    ("settings", "runs", "holds"),
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
def test_teacher_is_there_only_where_needed(settings: dict, runs: bool, holds: bool) -> None:
    config = MixCPTConfig(**FOLDERS, **settings)
    assert (config.runs_teacher, config.holds_teacher) == (runs, holds)
