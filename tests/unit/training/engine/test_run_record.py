"""A resumed run's settings against its checkpoint's: the learning rate schedule, which the engine itself compares."""

from unittest import mock

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.testing import run_distributed


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
