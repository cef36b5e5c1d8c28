"""The rule for spikes of the loss, worked out by hand."""

import pytest

from megatron_mixcpt.testing import run_distributed


def test_spike_rule() -> None:
    run_distributed(check_spike_rule, 1, cpu_emulation=True)


def check_spike_rule() -> None:
    """Losses 1 and 3 in turn have mean 2 and standard deviation 1: with six sigma everything above 8 is a spike."""
    from megatron_mixcpt.training.loss_watch import SpikeRule

    rule = SpikeRule(6.0)
    assert rule.limit(100.0) is None, "nothing is known yet"
    for _ in range(50):  # a hundred losses: the first one has left the window
        assert rule.limit(1.0) is None and rule.limit(3.0) is None
    assert rule.limit(7.99) is None
    rule = after_a_hundred(SpikeRule(6.0))
    assert rule.limit(8.01) == pytest.approx(8.0)
    assert rule.limit(8.01) is None, "the first spike counts in what is usual"
    assert after_a_hundred(SpikeRule(0.0)).limit(1e9) is None
    assert after_a_hundred(SpikeRule(6.0), 9).limit(1e9) is None, "18 losses are too few"


def after_a_hundred(rule, pairs: int = 50):
    for loss in (1.0, 3.0) * pairs:
        rule.limit(loss)
    return rule
