"""The check of a resumed run: which flags it compares, and what it says.

The engine's flags are decided in ``flag_table.py``. When we gain a flag, ``test_every_flag_of_ours_is_decided`` fails
until someone decides: a flag that changes neither what is learned nor the order of the samples goes to
``harmless_flags.py``, any other to ``compared_flags.txt`` beside this file.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from megatron.training.arguments import add_megatron_arguments

from megatron_mixcpt.config import DPOConfig, MixCPTConfig, SFTConfig
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.flags import Parser, build_parser
from megatron_mixcpt.testing import run_distributed
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_FLAGS
from megatron_mixcpt.training.engine.run_record import build_record, check_resumes, engine_flags

CONFIGS = (MixCPTConfig, SFTConfig, DPOConfig)
COMPARED = set(Path(__file__).with_name("compared_flags.txt").read_text().split())
CONFIG = MixCPTConfig(hf_model="model", mixture="mixture")


def test_every_flag_of_ours_is_decided() -> None:
    parsers = [build_parser(None, config) for config in CONFIGS]
    actions = [action for parser in parsers for action in parser._actions if action.dest != "help"]
    ours = {action.option_strings[0] for action in actions}
    undecided = ours - set(HARMLESS_FLAGS) - COMPARED
    assert not undecided, f"decide whether a resumed run may change {sorted(undecided)} (see this file's docstring)"
    gone = (set(HARMLESS_FLAGS) | COMPARED) - ours
    assert not gone, f"no such flags any more: {sorted(gone)}"
    assert not COMPARED & set(HARMLESS_FLAGS), "both compared and harmless"


def arguments(**changed: Any) -> argparse.Namespace:
    """The engine's arguments at their defaults, but for ``changed``."""
    names = vars(add_megatron_arguments(Parser()).parse_args([]))
    assert changed.keys() <= names.keys()
    return argparse.Namespace(**(names | {"rank": 0} | changed))


def resume(saved: argparse.Namespace, args: argparse.Namespace, *, allow: bool = False, **changed: Any) -> None:
    """Resume a run of ``saved`` as ``args`` and a changed config say."""
    saved.run_record = build_record(saved, CONFIG, {"the mixture's content": "a"})
    checkpoint = SimpleNamespace(iteration=3, folder=Path("save/iter_0000003"), arguments=lambda: vars(saved))
    config = MixCPTConfig(**{"hf_model": "model", "mixture": "mixture"} | changed)
    record = build_record(args, config, {"the mixture's content": "a"})
    check_resumes(args, checkpoint, record, {}, allow=allow)


@pytest.mark.parametrize(
    ("flag", "changed"),
    [
        ("--eod-mask-loss False, this one has True", {"eod_mask_loss": True}),
        ("--dataloader-type None, this one has cyclic", {"dataloader_type": "cyclic"}),
        ("--seed 1234, this one has 7", {"seed": 7}),
        ("--adam-beta2 0.999, this one has 0.95", {"adam_beta2": 0.95}),
    ],
)
def test_a_changed_flag_of_the_engine_is_refused(flag: str, changed: dict[str, Any]) -> None:
    message = f"iter_0000003 is of a run with {flag}: give what it had, another --save, or --resume-with-changes"
    with pytest.raises(ConfigError, match=message):
        resume(arguments(), arguments(**changed))
    with pytest.raises(ConfigError, match=flag.split()[0]):  # as well the other way round
        resume(arguments(**changed), arguments())


def test_a_changed_flag_of_ours_is_refused() -> None:
    with pytest.raises(ConfigError, match="--teacher-fp8 False, this one has True"):
        resume(arguments(), arguments(), teacher_fp8=True)
    with pytest.raises(ConfigError, match="--epochs 1, this one has 3"):  # of SFT and DPO they are passes to train
        resume(arguments(), arguments(), epochs="3")


def test_another_layout_and_other_paths_are_accepted() -> None:
    layout = {"tensor_model_parallel_size": 2, "use_distributed_optimizer": True, "micro_batch_size": 4}
    resume(arguments(), arguments(**layout, save="elsewhere", num_workers=0, bias_dropout_fusion=False), keep_last=2)


def test_allowed_changes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    resume(arguments(), arguments(seed=7), allow=True)
    assert "warning: save/iter_0000003 is of a run with --seed 1234, this one has 7" in capsys.readouterr().out


def test_a_checkpoint_without_optimizer_is_refused() -> None:
    with pytest.raises(CheckpointError, match="was saved without the optimizer"):
        resume(arguments(no_save_optim=True), arguments())


def test_values_are_recorded_where_they_are_not_the_default() -> None:
    record = build_record(arguments(clip_grad=0.5), CONFIG, {})
    assert record["--clip-grad"] == 0.5 and "--seed" not in record
    assert record["--alpha"] == 0.8 and "--keep-last" not in record  # ours are always recorded
    assert all(flag.startswith("--") for _, flag, _ in engine_flags())


def test_another_schedule_is_refused() -> None:
    run_distributed(check_schedule, 1, cpu_emulation=True)


def check_schedule() -> None:
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    from megatron_mixcpt.training.engine.patches import change_engine
    from megatron_mixcpt.training.engine.run_record import schedule_check

    def schedule(steps: int) -> OptimizerParamScheduler:
        optimizer = mock.Mock(param_groups=[{"params": []}])
        rates = {"init_lr": 0.0, "max_lr": 1.0, "min_lr": 0.1, "lr_warmup_steps": 0, "lr_decay_style": "cosine"}
        decay = {"start_wd": 0.0, "end_wd": 0.0, "wd_incr_steps": steps, "wd_incr_style": "constant"}
        return OptimizerParamScheduler(
            optimizer, **rates, lr_decay_steps=steps, **decay, use_checkpoint_opt_param_scheduler=False
        )

    change_engine([schedule_check()])
    schedule(10).load_state_dict(schedule(10).state_dict())
    with pytest.raises(ConfigError, match=r"another learning rate schedule .*10 .*20 .*: give the flags it had"):
        schedule(10).load_state_dict(schedule(20).state_dict())
    with pytest.raises(KeyError):
        schedule(10).load_state_dict({})
