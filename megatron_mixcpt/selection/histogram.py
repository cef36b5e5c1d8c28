"""The distribution of scores: counted in bins of equal ratio while samples stream by, then drawn."""

import io
from typing import Any

import numpy as np

# Scores are ratios of losses, about 0.01 to 10: 80 bins to each factor of ten, with all beyond in the outermost ones.
EDGES = np.logspace(-3, 3, 481)
TICKS = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 1.5, 2, 3, 5, 7)]
INK, MUTED = "#1f5fa8", "#c9d3df"


class Histogram:
    """Counts per bin, and the smallest, mean and largest of the counted scores."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(EDGES) - 1, np.int64)
        self._sum = 0.0
        self._least, self._largest = float("inf"), float("-inf")

    def add(self, score: float) -> None:
        """Count a positive number."""
        place = int(np.searchsorted(EDGES, score, side="right")) - 1
        self.counts[min(max(place, 0), len(self.counts) - 1)] += 1
        self._sum += score
        self._least, self._largest = min(self._least, score), max(self._largest, score)

    @property
    def total(self) -> int:
        """Number of counted scores."""
        return int(self.counts.sum())

    def described(self) -> dict[str, Any]:
        """For a report; ``bins`` are [from, to, count], without empty bins."""
        if not self.total:
            return {"samples": 0}
        bins = [
            [round(float(EDGES[place]), 6), round(float(EDGES[place + 1]), 6), int(self.counts[place])]
            for place in np.flatnonzero(self.counts)
        ]
        mean = self._sum / self.total
        return {"samples": self.total, "min": self._least, "mean": mean, "max": self._largest, "bins": bins}


def draw(everyone: Histogram, chosen: Histogram, title: str) -> bytes | None:
    """A picture of both as PNG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    widths = np.diff(EDGES)
    axes.bar(EDGES[:-1], everyone.counts, widths, align="edge", color=MUTED, label=f"all ({everyone.total:,})")
    axes.bar(EDGES[:-1], chosen.counts, widths, align="edge", color=INK, label=f"selected ({chosen.total:,})")
    used = np.flatnonzero(everyone.counts)
    axes.set_xscale("log")
    limits = EDGES[max(used[0] - 1, 0)], EDGES[min(used[-1] + 2, len(EDGES) - 1)]
    ticks = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="format alignment score (log scale)", ylabel="samples", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()
