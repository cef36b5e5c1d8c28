"""Progress in a log: a line every ten seconds, with share, rate and remaining time."""

import pytest

from megatron_mixcpt.jobs import progress
from megatron_mixcpt.jobs.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as its only item; standard error is no terminal."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """After 10 s 20 of 100 MB are done: 2 MB/s, and 40 s are left."""
    with Progress(100_000_000, "read") as bar:
        bar.add(10_000_000)
        clock[0] += 9.9
        bar.add(5_000_000)
        assert capsys.readouterr().err == ""
        clock[0] += 0.1
        bar.add(5_000_000)
        assert capsys.readouterr().err == "read: 20% of 100 MB, 2.0 MB/s, 40 s left\n"
        bar.add(5_000_000)
    assert capsys.readouterr().err == ""


def test_no_input_is_no_division_by_zero(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(0, "read") as bar:
        clock[0] += 10
        bar.add(0)
    assert "read: 0% of 0 MB, 0.0 MB/s" in capsys.readouterr().err
