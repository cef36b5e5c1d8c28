"""The forgetting meter alone: what it adds to an evaluation, its table, and what a resumed run knows."""

from pathlib import Path

from megatron_mixcpt.testing import run_distributed

SETS = {"cpt": "digest 1", "general": "digest 2"}


def test_forgetting_meter(tmp_path: Path) -> None:
    run_distributed(check_forgetting_meter, 1, str(tmp_path), cpu_emulation=True)


def check_forgetting_meter(folder: str) -> None:
    check_teacher_is_measured_once()
    check_start_is_remembered(Path(folder))


def losses(student: float, teacher: float | None = None) -> dict:
    """What the engine reports of one set."""
    import torch

    values = {"ntp loss": student} | ({} if teacher is None else {"teacher ntp loss": teacher})
    return {key: torch.tensor(value) for key, value in values.items()}


def check_teacher_is_measured_once() -> None:
    from megatron_mixcpt.training.pretraining.forgetting import ForgettingMeter

    meter = ForgettingMeter(SETS, runs_teacher=True, folder=None)
    meter.begin(0)
    for loss in (2.5, 3.0):
        assert meter.measures_teacher
        meter.take(losses(loss, loss + 0.25))
    meter.begin(10)
    later = [losses(2.0), losses(3.5)]
    for found in later:
        assert not meter.measures_teacher
        meter.take(found)
    assert [found["teacher ntp loss"].item() for found in later] == [2.75, 3.25]
    assert meter.end().splitlines() == [
        "next-token loss after 10 iterations, in nats per token; change: student - teacher",
        "validation set             student   teacher    change",
        "cpt                         2.0000    2.7500   -0.7500",
        "general                     3.5000    3.2500   +0.2500",
    ]


def check_start_is_remembered(folder: Path) -> None:
    from megatron_mixcpt.training.pretraining.forgetting import ForgettingMeter

    first = ForgettingMeter(SETS, runs_teacher=False, folder=folder)
    first.begin(0)
    for loss in (2.5, 3.0):
        first.take(losses(loss))
    first.end()
    resumed = ForgettingMeter(SETS | {"general": "another digest"}, runs_teacher=False, folder=folder)
    resumed.begin(10)
    found = [losses(2.0), losses(3.5)]
    for part in found:
        resumed.take(part)
    assert found[0]["teacher ntp loss"] == 2.5
    assert "teacher ntp loss" not in found[1], "the set is another one now"
    assert resumed.end().splitlines()[-1] == "general                     3.5000 not known"
