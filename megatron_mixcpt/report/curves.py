"""Which curves of the training logs are shown: one line per method, the mean over its seeds, between their extremes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_mixcpt.data.dataset_names import is_dataset_name, kind_of, of_kind, source_of
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.log_names import (
    ACCURACY,
    AGREEMENT,
    DIVERGENCE,
    EXPERT_LOAD,
    IDLE_EXPERTS,
    LOSS,
    REWARD_MARGIN,
    STUDENT_LOSS,
    SWAPPED_FRACTION,
    TEACHER_LOSS,
    of_dataset,
    of_validation,
)
from megatron_mixcpt.report.compare import last_validation, validated
from megatron_mixcpt.report.inputs import TrainingRun, methods

# Curve -> title and unit; see docs/reference/log-keys.md.
TRAINING_CURVES = {
    STUDENT_LOSS: ("Training: next-token loss", "nats per token; batches differ, so look at the trend"),
    DIVERGENCE: ("Training: KL to the teacher", "nats per token, all data together"),
    SWAPPED_FRACTION: ("Swap rate", "share of tokens whose teacher's first choice is not the label"),
    AGREEMENT: ("Agreement", "share of tokens where student and teacher put the same token first"),
    ACCURACY: ("DPO: accuracy", "share of pairs with the chosen response ahead"),
    REWARD_MARGIN: ("DPO: reward margin", "chosen less rejected"),
    EXPERT_LOAD: ("Routers: load", "tokens of the largest expert over the mean, in the least balanced layer"),
    IDLE_EXPERTS: ("Routers: experts without tokens", "share of all experts to which no token of a step went"),
}
_NAMES_OF_KINDS = {"cpt": "documents", "sft": "instructions", "dpo": "preferences"}
_MOST_POINTS = 80


@dataclass(frozen=True)
class MethodCurve:
    """One method's curve: arrays [points]."""

    method: str
    iterations: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_seeds: int


@dataclass(frozen=True)
class CurveChart:
    """The lines of one quantity."""

    name: str
    title: str
    unit: str
    lines: tuple[MethodCurve, ...]
    teacher: tuple[float, ...] = ()
    """Constant lines: the teachers' values."""
    smoothed: int = 1
    """Points in the running mean that the longest line was smoothed with."""


def validation_charts(runs: Sequence[TrainingRun]) -> list[CurveChart]:
    """For each validation set the next-token loss beside the teacher's, and the divergence from the teacher."""
    charts = []
    for name in dict.fromkeys(name for run in runs for name in validated(run)):
        teachers = [last_validation(run, TEACHER_LOSS, name) for run in runs if name in validated(run)]
        unit = "next-token loss in nats per token; dotted: the teacher"
        curve = of_validation(STUDENT_LOSS, name)
        charts.append(_chart(runs, curve, f"Validation: {name}", unit, _distinct(teachers)))
        title = f"Validation: KL to the teacher, {name}"
        charts.append(_chart(runs, of_validation(DIVERGENCE, name), title, "nats per token"))
    return [chart for chart in charts if chart.lines]


def training_charts(runs: Sequence[TrainingRun]) -> list[CurveChart]:
    """The curves that were logged: :data:`TRAINING_CURVES`, KL by dataset, the loss of runs of format alignment."""
    charts = []
    for curve, (title, unit) in TRAINING_CURVES.items():
        charts.append(_chart(runs, curve, title, unit))
        if curve == DIVERGENCE:
            by_dataset = [(of_dataset(curve, name), _title(title, name)) for name in _datasets(runs)]
            charts += [_chart(runs, one, its_title, "nats per token") for one, its_title in by_dataset]
    aligned = [run for run in runs if STUDENT_LOSS not in run.log.curves]
    charts.append(_chart(aligned, LOSS, "Format alignment: loss", "of SFT or DPO"))
    return [chart for chart in charts if chart.lines]


def _datasets(runs: Sequence[TrainingRun]) -> list[str]:
    """The datasets whose divergence a run logged by itself: kinds in their order, the sources of each by name."""
    start = of_dataset(DIVERGENCE, "")
    found = {curve.removeprefix(start) for run in runs for curve in run.log.curves if curve.startswith(start)}
    return [name for kind in KINDS for name in sorted(of_kind(kind, filter(is_dataset_name, found)))]


def _title(title: str, dataset: str) -> str:
    source = source_of(dataset)
    return f"{title}, {_NAMES_OF_KINDS[kind_of(dataset)]}" + (f" of {source}" if source else "")


def _chart(
    runs: Sequence[TrainingRun], curve: str, title: str, unit: str, teacher: tuple[float, ...] = ()
) -> CurveChart:
    lines, window = [], 1
    for method in methods(runs):
        logged = [_points(run, curve) for run in runs if run.method == method]
        logged = [points for points in logged if points]
        shared = sorted(set.intersection(*map(set, logged))) if logged else []
        if shared:
            values = np.array([[points[iteration] for iteration in shared] for points in logged])
            window = max(window, len(shared) // _MOST_POINTS)
            lines.append(_line(method, np.array(shared), values, max(1, len(shared) // _MOST_POINTS)))
    return CurveChart(curve, title, unit, tuple(lines), teacher, window)


def _points(run: TrainingRun, curve: str) -> dict[int, float]:
    """Iteration -> value, without what is no number; nothing where all is 0, as without a teacher."""
    points = {iteration: value for iteration, value in run.log.curves.get(curve, []) if np.isfinite(value)}
    if curve.startswith(of_dataset(DIVERGENCE, "")) and is_dataset_name(curve.rpartition(" ")[2]):
        # Where a batch has no sample of the dataset, the engine logs 0.
        return {iteration: value for iteration, value in points.items() if value}
    return points if any(points.values()) else {}


def _line(method: str, iterations: np.ndarray, values: np.ndarray, window: int) -> MethodCurve:
    smooth = np.array([np.convolve(row, np.full(window, 1 / window), mode="valid") for row in values])
    middle = iterations[(window - 1) // 2 : (window - 1) // 2 + smooth.shape[1]]
    return MethodCurve(method, middle, smooth.mean(0), smooth.min(0), smooth.max(0), len(values))


def _distinct(values: Sequence[float]) -> tuple[float, ...]:
    """Values that differ by more than rounding."""
    kept: list[float] = []
    for value in values:
        if not any(np.isclose(value, other, rtol=1e-4) for other in kept):
            kept.append(value)
    return tuple(kept)
