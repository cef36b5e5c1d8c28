"""What the settings refuse, and that the nearest valid setting is taken."""

import pytest

from megatron_mixcpt.config import DPOConfig, MixCPTConfig, RunConfig, SFTConfig
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import build_parser, described, settings_from
from megatron_mixcpt.objective import Divergence, Objective

FOLDERS = {"hf_model": "model", "mixture": "mixture"}
NO_TEACHER = Objective(distillation="none")


@pytest.mark.parametrize(
    ("config_class", "wrong", "message"),
    [
        (RunConfig, {"keep_last": 0}, "--keep-last 0: must be greater than 0"),
        (RunConfig, {"loss_spike_sigma": -1.0}, "--loss-spike-sigma -1.0: must be at least 0"),
        (RunConfig, {"assume_ranks": 8}, "--assume-ranks 8 is for --dry-run: .*; add --dry-run, or remove it"),
        (RunConfig, {"assume_ranks": 0, "dry_run": True}, "--assume-ranks 0: must be greater than 0"),
        (MixCPTConfig, FOLDERS | {"hf_model": ""}, "--hf-model is missing"),
        (MixCPTConfig, FOLDERS | {"mixture": ""}, "--mixture is missing"),
        (
            MixCPTConfig,
            FOLDERS | {"teacher_fp8": True, "objective": NO_TEACHER},
            "--teacher-fp8: no teacher runs with --distillation none",
        ),
        (
            MixCPTConfig,
            FOLDERS | {"teacher_offload": "cpu", "objective": Objective(distillation="l2")},
            "--teacher-offload cpu: no teacher runs with .* l2",
        ),
        (MixCPTConfig, FOLDERS | {"loss_chunk_tokens": -1}, "--loss-chunk-tokens -1: must be at least 0"),
        (SFTConfig, {}, "--sft is missing"),
        (SFTConfig, {"data": ["a"], "epochs": 0}, "--epochs 0: must be greater than 0"),
        (SFTConfig, {"data": ["a"], "held_out": 1.0}, "--held-out 1.0: must be at least 0 and below 1"),
        (DPOConfig, {}, "--dpo is missing"),
        (DPOConfig, {"data": ["a"], "beta": 0.0}, "--beta 0.0: must be greater than 0"),
        (DPOConfig, {"data": ["a"], "beta": -0.1}, "--beta -0.1: must be greater than 0"),
        (DPOConfig, {"data": ["a"], "dpo_label_smoothing": 0.5}, "--label-smoothing 0.5: must be .* below 0.5"),
        (DPOConfig, {"data": ["a"], "dpo_label_smoothing": 0.1, "loss": "ipo"}, "0.1 is not used with --loss ipo"),
        (DPOConfig, {"data": ["a"], "sft_coefficient": -1.0}, "--sft-coefficient -1.0: must be at least 0"),
    ],
)
def test_refuses(config_class: type, wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class(**wrong)


def test_takes_the_ends() -> None:
    RunConfig(keep_last=1, loss_spike_sigma=0.0)
    MixCPTConfig(**FOLDERS, teacher_offload="cpu", teacher_fp8=True, loss_chunk_tokens=0)
    SFTConfig(data=["a"], epochs=1, held_out=0.0)
    DPOConfig(data=["a"], beta=1e-9, dpo_label_smoothing=0.49, sft_coefficient=0.0)


def test_flags_of_the_loss_make_the_objective() -> None:
    argv = "--hf-model model --mixture mixture --distillation kd --alpha 0.5 --distillation-fraction 0.25".split()
    argv += "--divergence forward --distillation-temperature 2 --log-teacher-entropy".split()
    config = settings_from(build_parser("A trainer.", MixCPTConfig).parse_args(argv), MixCPTConfig)
    divergence = Divergence(direction="forward", temperature=2.0, teacher_entropy=True)
    expected = Objective(distillation="kd", alpha=0.5, distillation_fraction=0.25, divergence=divergence)
    assert config.objective == expected
    assert described(expected) == {
        "--distillation": "kd",
        "--alpha": 0.5,
        "--distillation-fraction": 0.25,
        "--l2-coefficient": 1e-4,
        "--divergence": "forward",
        "--distillation-temperature": 2.0,
    }
