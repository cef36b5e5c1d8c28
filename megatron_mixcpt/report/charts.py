"""The three kinds of pictures: gains and losses against the base, curves over training, distributions of scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_mixcpt.report.compare import DOMAIN, Comparison, Spread
from megatron_mixcpt.report.curves import CurveChart
from megatron_mixcpt.report.inputs import ScoresFile
from megatron_mixcpt.report.style import (
    BETTER,
    COLOURS,
    GRID,
    INK,
    MUTED,
    WORSE,
    Picture,
    finish,
    line_style,
    new_figure,
    whole_numbers_only,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE_TITLES = {"domain": "Domain: learned?", "general": "Everything else: kept?"}


def signed(spread: Spread, digits: int = 2) -> str:
    """``+1.23 ± 0.04`` or, of one seed, ``+1.23``."""
    mean = round(spread.mean, digits) + 0.0  # no negative zero
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.{digits}f}"
    return f"{mean:+.{digits}f}{deviation}".replace("-", "\N{MINUS SIGN}")


def draw_gains(comparison: Comparison, side: str) -> Picture | None:
    """One row per method: its gain over the base on one side, each seed and the mean; None where there is no gain."""
    found = comparison.gains(side)
    gains = {method: found[method] for method in comparison.methods() if method in found}
    if not gains:
        return None
    figure, axes = new_figure(1.35 + 0.42 * len(gains))
    places = np.arange(len(gains))[::-1]
    for place, spread in zip(places, gains.values(), strict=True):
        _draw_gain(axes, place, spread)
    axes.axvline(0, color=INK, linewidth=1.2)
    axes.set_ylim(-0.6, len(gains) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    values = axes.secondary_yaxis("right")
    for labelled, labels in ((axes, list(gains)), (values, [signed(spread) for spread in gains.values()])):
        labelled.set_yticks(places, labels)
        labelled.tick_params(axis="y", length=0)
        labelled.spines[["left", "right"]].set_visible(False)
    axes.set_title(SIDE_TITLES[side])
    axes.set_xlabel(
        f"\N{LEFTWARDS ARROW} worse \N{MIDDLE DOT} {comparison.gain_unit} \N{MIDDLE DOT} better \N{RIGHTWARDS ARROW}"
    )
    listed = "; ".join(f"{method} {signed(spread)}" for method, spread in gains.items())
    alt = f"{SIDE_TITLES[side]} Gain over the base, {comparison.gain_unit}, positive is better: {listed}."
    return finish(figure, f"{comparison.title}-{side}", alt)


def _draw_gain(axes: "Axes", place: int, spread: Spread) -> None:
    """A line from the base to the mean, and a tick for each of several seeds."""
    colour = BETTER if spread.mean >= 0 else WORSE
    axes.plot([0, spread.mean], [place, place], color=colour, linewidth=3.5, solid_capstyle="butt")
    axes.plot([spread.mean], [place], marker="o", markersize=9, color=colour)
    if spread.deviation is not None:
        heights = np.full(len(spread.values), place)
        axes.plot(spread.values, heights, "|", markersize=13, markeredgewidth=1.6, color=INK)


def draw_curves(chart: CurveChart, order: Sequence[str]) -> Picture:
    """A line per method over the iterations; ``order`` is all methods', so that each keeps its colour everywhere."""
    legend_rows = -(-len(chart.lines) // 3)
    figure, axes = new_figure(2.9 + 0.22 * legend_rows)
    for line in chart.lines:
        style = line_style(order.index(line.method))
        marker = "o" if len(line.iterations) < 12 else ""
        axes.plot(line.iterations, line.mean, marker=marker, markersize=4, linewidth=1.8, label=line.method, **style)
        if line.num_seeds > 1:
            axes.fill_between(line.iterations, line.low, line.high, color=style["color"], alpha=0.18, linewidth=0)
    for value in chart.teacher:
        axes.axhline(value, color=INK, linestyle=":", linewidth=1.5)
    axes.set_title(chart.title)
    axes.set_xlabel("iteration")
    whole_numbers_only(axes.xaxis)
    figure.legend(loc="outside lower left", ncols=3, fontsize=9.5, handlelength=2.6)
    ends = "; ".join(f"{line.method} from {line.mean[0]:.4g} to {line.mean[-1]:.4g}" for line in chart.lines)
    teacher = "".join(f"; the teacher's constant {value:.4g}" for value in chart.teacher)
    caption = chart.unit
    if any(line.num_seeds > 1 for line in chart.lines):
        caption += "; mean of the seeds, shaded from the lowest to the highest"
    if chart.smoothed > 1:
        caption += f"; running mean over {chart.smoothed} logged points"
    alt = f"{chart.title}, {chart.unit}. First and last point: {ends}{teacher}."
    return finish(figure, chart.name, alt, caption)


def draw_fas(scores: ScoresFile) -> Picture:
    """How the alignment scores of each kind of sample are distributed, on a logarithmic axis."""
    figure, axes = new_figure(3.1)
    everything = np.concatenate([np.asarray(values) for values in scores.fas.values()])
    edges = np.geomspace(max(everything.min(), 1e-3) / 1.02, max(everything.max(), 1e-3) * 1.02, 41).tolist()
    said = []
    for index, (kind, values) in enumerate(scores.fas.items()):
        share = np.full(len(values), 100 / len(values))
        label = f"{kind}: {len(values):,} samples"
        axes.hist(values, edges, weights=share, histtype="stepfilled", alpha=0.35, color=COLOURS[index], label=label)
        axes.hist(values, edges, weights=share, histtype="step", linewidth=1.6, **line_style(index))
        low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
        said.append(f"{label}, median {median:.3f}, nine in ten between {low:.3f} and {high:.3f}")
    axes.set_xscale("log")
    axes.axvline(1, color=MUTED, linewidth=1.2, linestyle=":")
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10) if edges[0] <= tick <= edges[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color=GRID)
    axes.set_title(f"Alignment scores: {scores.name}")
    axes.set_xlabel("format alignment score; high is hard (log scale)")
    axes.set_ylabel("% of the kind's samples")
    axes.legend(fontsize=9.5)
    return finish(
        figure, f"fas-{scores.name}", f"Distribution of format alignment scores in {scores.name}: {'; '.join(said)}."
    )


def gain_pictures(comparison: Comparison) -> list[Picture]:
    """Both sides of a comparison, those that have a gain, domain first."""
    drawn = [draw_gains(comparison, side) for side in (DOMAIN, *(side for side in SIDE_TITLES if side != DOMAIN))]
    return [picture for picture in drawn if picture]
