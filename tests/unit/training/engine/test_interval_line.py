"""The line of a log interval: its width, its digits, whose figures it holds, and the time left."""

import re

import pytest
import torch

from megatron_mixcpt.training.engine.interval_line import MAX_COLUMNS, Interval, duration, interval_line


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def figures(**values: float) -> dict[str, torch.Tensor]:
    return {key.replace("_", " "): torch.tensor(value) for key, value in values.items()}


def test_longest_lines_of_both_kinds_of_training_fit() -> None:
    pretraining = {
        "loss": -0.00123456789,
        "ntp loss": 123.456789,
        "lssd loss": 0.000987654321,
        "swapped fraction": 0.123456,
        "tokens per second": 123456789.0,
    }
    line = interval_line(123456, 123456, pretraining, 99 * 86400.0)
    assert len(line) <= MAX_COLUMNS < 160
    assert line.startswith(
        "iteration 123456/123456 | loss: -0.00123457 | ntp loss: 123.457 | lssd loss: 0.000987654 | "
    )
    assert line.endswith(" | tokens per second: 123456789 | time left: 99d 00:00")
    usual = pretraining | {"loss": 2.5, "ntp loss": 2.5, "tokens per second": 123456.0}
    assert "| swapped fraction: 0.1235 | tokens" in interval_line(1234, 1234, usual, 86399.0)
    wide = interval_line(1, 2, {f"figure {number}": 1 / 3 for number in range(20)}, 60.0)
    assert len(wide) <= MAX_COLUMNS and wide.endswith("| time left: 0:01:00")


@pytest.mark.parametrize("loss", [6.264246, 0.4962361, 12.5, 1e-7, 5.0])
def test_losses_have_six_significant_digits_at_least(loss: float) -> None:
    (text,) = re.findall(r" loss: (\S+)", interval_line(1, 5, {"loss": loss}, 1.0))
    assert float(text) == pytest.approx(loss, rel=5e-6)
    assert len(re.sub(r"e.*|\.|-", "", text).lstrip("0")) >= 6


def test_a_line_holds_the_means_of_its_own_iterations() -> None:
    """The second line after a start is not a mean with the first; figures that are not shown are not kept."""
    interval = Interval(now=Clock())
    interval.add(figures(loss=8.0, ntp_loss=4.0, tokens_per_second=100.0, teacher_entropy=1.0), skipped=False)
    assert interval.take(1, 9).startswith(
        "iteration 1/9 | loss: 8.00000 | ntp loss: 4.00000 | tokens per second: 100 |"
    )
    interval.add(figures(loss=2.0), skipped=False)
    assert interval.take(2, 9).startswith("iteration 2/9 | loss: 2.00000 | time left")
    for loss in (1.0, 2.0):
        interval.add(figures(loss=loss), skipped=False)
    interval.add(figures(loss=float("nan")), skipped=True)
    assert interval.take(5, 9).startswith("iteration 5/9 | loss: 1.50000 | skipped iterations: 1 | time left")


def test_time_left_leaves_out_the_slow_first_iteration() -> None:
    clock = Clock()
    interval = Interval(now=clock)
    clock.seconds = 1000.0  # loading
    interval.start()
    clock.seconds += 50.0
    assert interval.take(1, 11).endswith("time left: 0:08:20")
    clock.seconds += 4.0
    assert interval.take(3, 11).endswith("time left: 0:00:16")


def test_time_left_of_a_resumed_run_counts_its_own_iterations() -> None:
    clock = Clock()
    interval = Interval(now=clock)
    for iteration in (101, 111):
        clock.seconds += 10.0
        line = interval.take(iteration, 211)
    assert line.endswith("time left: 0:01:40")


def test_tokens_per_second_without_evaluations_where_the_losses_have_none() -> None:
    clock = Clock()
    interval = Interval(now=clock)
    interval.start()
    for num_tokens in (300, 700):
        interval.add(figures(loss=1.0), num_tokens=num_tokens, skipped=False)
    clock.seconds = 10.0
    interval.leave_out(8.0)
    assert " | tokens per second: 500 | " in interval.take(2, 4)


def test_figures_that_are_not_finite_are_shown() -> None:
    assert "| loss: nan | time left: unknown" in interval_line(1, 2, {"loss": float("nan")}, float("inf"))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (250.0, "0:04:10"), (86399.0, "23:59:59"), (97200.0, "1d 03:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
