"""Methods compared along the whole trade of learning against keeping: a table, a picture, and what is kept at equal
gain.

A *cell* is one run: ``{"method": "lssd", "alpha": 0.8, "seed": 1, "gain": 8.3, "change": 2.9}``. ``gain`` is what was
won on the domain and ``change`` what happened to the rest, both in percent of the model before training, and more is
better in both. ``alpha`` is the weight of next-token prediction; the method ``none``, which has nothing else, is the
end of every method's curve. A method without such a weight has ``alpha`` None: it is one point, and has no curve.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Cell = dict[str, Any]

COMMON_END = "none"
# Student's t: the 97.5% quantiles for 1, 2, ... degrees of freedom (NIST/SEMATECH e-Handbook, section 1.3.6.7.2).
T_975 = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
]
COLOURS = {"none": "black", "lssd": "tab:blue", "kd": "tab:orange", "l2": "tab:green"}


class Kept(NamedTuple):
    """What one method keeps more than another for the same gain, in percentage points of ``change``."""

    mean: float
    low: float
    """The ends of the 95% confidence interval of the mean difference; NaN with a single seed."""
    high: float
    by_seed: dict[int, float]


def kept_at_equal_gain(cells: Sequence[Cell], method: str, other: str, gain: float | None = None) -> Kept:
    """``change`` of ``method`` minus that of ``other`` at equal gain, paired by seed.

    Of each seed that has both, the points of a method and the common end are sorted by gain and joined by lines. The
    difference of the two lines is averaged over the gains that both reach, or taken at one ``gain``. The interval is
    Student's t, of the differences of the seeds.

    Raises:
        ValueError: if no seed has both methods, or the two curves of a seed have no gain in common.
    """
    seeds = sorted({cell["seed"] for cell in _of(cells, method)} & {cell["seed"] for cell in _of(cells, other)})
    if not seeds:
        raise ValueError(f"no seed has cells of both {method} and {other}")
    by_seed = {seed: _difference(cells, seed, method, other, gain) for seed in seeds}
    mean, margin = mean_and_margin(list(by_seed.values()))
    return Kept(mean, mean - margin, mean + margin, by_seed)


def mean_and_margin(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95% confidence interval by Student's t; NaN for a single value."""
    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    quantile = T_975[min(len(values) - 1, len(T_975)) - 1]  # beyond the table the interval is slightly too wide
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / len(values) ** 0.5)


def _difference(cells: Sequence[Cell], seed: int, method: str, other: str, gain: float | None) -> float:
    of_seed = [cell for cell in cells if cell["seed"] == seed]
    curves = [_curve(of_seed, name) for name in (method, other)]
    low, high = max(gains[0] for gains, _ in curves), min(gains[-1] for gains, _ in curves)
    if gain is not None and not low <= gain <= high:
        raise ValueError(f"gain {gain}: seed {seed} has both {method} and {other} from {low:.3f} to {high:.3f} only")
    if low > high:
        raise ValueError(f"seed {seed}: {method} and {other} reach no gain in common")
    if gain is not None or low == high:
        first, second = (float(np.interp(low if gain is None else gain, *curve)) for curve in curves)
        return first - second
    # Lines between points: the trapezoid rule over all points of both is exact.
    at = np.unique(np.clip(np.concatenate([gains for gains, _ in curves]), low, high))
    first, second = (np.interp(at, *curve) for curve in curves)
    return float(np.trapezoid(first - second, at) / (high - low))


def _curve(cells: Sequence[Cell], method: str) -> tuple[np.ndarray, np.ndarray]:
    """Gains, ascending and each once, and the change at each: of one seed, with the common end."""
    points = {(cell["gain"], cell["change"]) for cell in (*_of(cells, method), *_of(cells, COMMON_END))}
    gains = sorted({gain for gain, _ in points})
    changes = [np.mean([change for its_gain, change in points if its_gain == gain]) for gain in gains]
    return np.array(gains), np.array(changes)


def _of(cells: Sequence[Cell], method: str) -> list[Cell]:
    return [cell for cell in cells if cell["method"] == method]


def grouped(cells: Sequence[Cell]) -> dict[tuple[str, float | None], list[Cell]]:
    """Cells by method and alpha: methods in the order in which they first appear, the largest alpha first."""
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    keys = {(cell["method"], cell["alpha"]) for cell in cells}
    order = sorted(keys, key=lambda key: (methods.index(key[0]), -(key[1] or 0.0)))
    return {key: [cell for cell in cells if (cell["method"], cell["alpha"]) == key] for key in order}


def table(cells: Sequence[Cell]) -> str:
    """Markdown: gain and change by method and alpha, mean ± sample standard deviation of the seeds."""
    lines = ["| method | alpha | seeds | gain on the domain | change on the rest |", "|---|---|---|---|---|"]
    for (method, alpha), group in grouped(cells).items():
        values = (_spread([cell[key] for cell in group]) for key in ("gain", "change"))
        weight = "" if alpha is None or method == COMMON_END else f"{alpha:g}"
        lines.append(f"| `{method}` | {weight} | {len(group)} | " + " | ".join(f"{value}%" for value in values) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


def picture(
    cells: Sequence[Cell],
    path: Path,
    title: str,
    xlabel: str = "gain on the domain (%)",
    ylabel: str = "change on the rest (%)",
) -> None:
    """Change against gain, one curve for each method from the common end on: means, and bars of one sample standard
    deviation of the seeds. Each point is labelled with its alpha."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    end = _point(_of(cells, COMMON_END)) if _of(cells, COMMON_END) else None
    for method in dict.fromkeys(cell["method"] for cell in cells):
        _draw(axes, cells, method, end)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _draw(axes: Any, cells: Sequence[Cell], method: str, end: tuple[float, ...] | None) -> None:
    """One method's points with their spread, joined with one another and with the common end."""
    groups = [(alpha, _point(group)) for (_, alpha), group in grouped(_of(cells, method)).items()]
    line = [end, *(point for _, point in groups)] if end else [point for _, point in groups]
    x, y, x_spread, y_spread = zip(*(point for _, point in groups), strict=True)
    (drawn,) = axes.plot([point[0] for point in line], [point[1] for point in line], lw=1.2, c=COLOURS.get(method))
    marks = {"fmt": "*", "ms": 13} if method == COMMON_END else {"fmt": "o", "ms": 5}
    axes.errorbar(
        x, y, y_spread, x_spread, color=drawn.get_color(), elinewidth=0.7, capsize=2, alpha=0.9, label=method, **marks
    )
    if method != COMMON_END:
        for alpha, point in groups:
            text = "" if alpha is None else f"{alpha:g}"
            axes.annotate(text, point[:2], xytext=(5, 5), textcoords="offset points", c=drawn.get_color(), fontsize=8)


def _point(cells: Sequence[Cell]) -> tuple[float, float, float, float]:
    """Mean gain, mean change, and the sample standard deviation of both."""
    values = np.array([(cell["gain"], cell["change"]) for cell in cells])
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(2)
    return *values.mean(axis=0).tolist(), *spread.tolist()
