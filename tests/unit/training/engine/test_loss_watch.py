"""The rule for spikes of the loss, worked out by hand, and which samples a report names."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable
from unittest import mock

import pytest
import torch

from megatron_mixcpt.testing import run_distributed


def test_spike_rule() -> None:
    run_distributed(check_spike_rule, 1, cpu_emulation=True)


def check_spike_rule() -> None:
    """Losses 1 and 3 in turn have mean 2 and standard deviation 1: with six sigma everything above 8 is a spike."""
    from megatron_mixcpt.training.engine.loss_watch import SpikeRule

    rule = SpikeRule(6.0)
    assert rule.limit(100.0) is None, "nothing is known yet"
    for _ in range(50):  # a hundred losses: the first one has left the window
        assert rule.limit(1.0) is None and rule.limit(3.0) is None
    assert rule.limit(7.99) is None
    rule = SpikeRule(6.0)
    for _ in range(100):  # of another level, all of which have left the window
        rule.limit(50.0)
    rule = after_a_hundred(rule)
    assert rule.limit(8.01) == pytest.approx(8.0)
    assert rule.limit(8.01) is None, "the first spike counts in what is usual"
    assert after_a_hundred(SpikeRule(0.0)).limit(1e9) is None
    assert after_a_hundred(SpikeRule(6.0), 9).limit(1e9) is None, "18 losses are too few"


def after_a_hundred(rule, pairs: int = 50):
    for loss in (1.0, 3.0) * pairs:
        rule.limit(loss)
    return rule


def test_reports_name_the_microbatches_at_fault() -> None:
    run_distributed(check_reports, 1, cpu_emulation=True)


def check_reports() -> None:
    """Steps of two microbatches of two samples each: 0 and 1, 2 and 3 in every step."""
    from megatron.core import parallel_state

    from megatron_mixcpt.errors import NumbersError
    from megatron_mixcpt.training.engine.loss_watch import LossWatch

    parallel_state.initialize_model_parallel()
    args = Namespace(rank=0, fp16=False, save=None)
    watch = LossWatch(args, 6.0, lambda dataset, index: f"sample {index}")
    for usual in (1.0, 3.0) * 10:
        assert not step(watch, [usual, usual])
    said = step(watch, [2.0, 100.0])
    assert said.startswith("warning: rank 0, iteration 1: the loss 51.0000 is a spike, above 8.0000")
    assert said.endswith("samples: [2] sample 2; [3] sample 3\n")
    with pytest.raises(NumbersError, match=r"1: the loss is nan; samples: \[0\] sample 0; \[1\] sample 1; there is no"):
        step(watch, [float("nan"), 2.0])
    with pytest.raises(
        NumbersError, match=r"a gradient is not finite \(.*NaN.*\); samples: \[0\].*\[3\] sample 3; there"
    ):
        step(watch, [2.0, 2.0], check_a_gradient)
    with pytest.raises(RuntimeError, match="the device"):
        step(watch, [2.0, 2.0], fail_while_checking)


def check_a_gradient() -> None:
    """As the engine does before ranks exchange gradients."""
    from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine, initialize_rerun_state_machine

    from megatron_mixcpt.training.engine.loss_watch import watched_numbers
    from megatron_mixcpt.training.engine.patches import change_engine

    change_engine(change for change in watched_numbers(mock.Mock()) if "validate_result" in change.name)
    initialize_rerun_state_machine(mode=RerunMode.DISABLED)
    check = get_rerun_state_machine().validate_result
    check(result=torch.tensor(1.0), rejection_func=torch.isnan, message="found NaN", fatal=True)
    check(result=torch.tensor(float("nan")), rejection_func=torch.isnan, message="found NaN", fatal=True)


def fail_while_checking() -> None:
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    get_rerun_state_machine().validate_result(
        torch.tensor(1.0), mock.Mock(side_effect=RuntimeError("the device")), "found NaN"
    )


def step(watch, losses: list[float], end: Callable[[], None] = lambda: None) -> str:
    """One training step whose microbatches have these losses, and which ends with ``end``; what it prints."""

    def forward_step(data_iterator, model):
        next(data_iterator)
        return None, lambda output: (None, None, {"loss": torch.tensor([losses[len(done)], 1.0])})

    def train_step(batches, *, iteration: int) -> tuple:
        for _ in losses:
            _, loss_func = watch.forward_step(forward_step)(batches, None)
            loss_func(None)
            done.append(None)
        end()
        return {"loss": torch.tensor(losses).mean()}, 0

    done: list[None] = []
    batches = iter([{"sample_index": torch.tensor([0, 1])}, {"sample_index": torch.tensor([2, 3])}])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        watch.train_step(train_step)(batches, iteration=0)
    return said.getvalue()
