"""The line of a log interval: iteration, means over the iterations since the line before, time left.

It reads ``iteration 12/100 | loss: 5.11064 | ... | time left: 0:04:10``, in under 160 columns, with the names that
TensorBoard shows.
"""

import math
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from megatron_mixcpt.log_names import EXPERT_LOAD, ROUTER_LOSSES

MAX_COLUMNS = 159
TOKENS_PER_SECOND = "tokens per second"
# In this order; what else is measured is in TensorBoard.
_SHOWN = (
    "loss",
    "ntp loss",
    "lssd loss",
    "swapped fraction",
    "accuracy",
    "reward margin",
    EXPERT_LOAD,
    *ROUTER_LOSSES,
    TOKENS_PER_SECOND,
)
# Where a line would be too wide.
_LEFT_OUT_FIRST = ("swapped fraction", "reward margin", *reversed(ROUTER_LOSSES))


class Interval:
    """Collects the figures of iterations, on their device until they are taken.

    Args:
        now: seconds on a clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sums: dict[str, Tensor] = {}
        self._num_added = self._num_skipped = self._num_tokens = 0
        self._first: tuple[int, float] | None = None
        self._began_s = self._line_s = now()

    def start(self) -> None:
        """The first iteration begins."""
        self._began_s = self._line_s = self._now()

    def seconds_since_start(self) -> float:
        """Since the first iteration began."""
        return self._now() - self._began_s

    def leave_out(self, seconds: float) -> None:
        """Not count these seconds, which were not spent on training, in ``tokens per second``."""
        self._line_s += seconds

    def add(self, figures: Mapping[str, Tensor], *, num_tokens: int = 0, skipped: bool) -> None:
        """Add an iteration's figures, scalars on any device; those of a skipped iteration do not count.

        ``num_tokens`` of its batch make ``tokens per second`` where the losses have no such figure; 0: leave it out.
        """
        if skipped:
            self._num_skipped += 1
            return
        self._num_added += 1
        self._num_tokens += num_tokens
        for key in _SHOWN:
            if key in figures:
                self._sums[key] = self._sums[key] + figures[key] if key in self._sums else figures[key]

    def take(self, iteration: int, total: int) -> str:
        """The line after ``iteration`` iterations of ``total``; the next one starts from here."""
        now_s = self._now()
        figures = {key: float(summed) / self._num_added for key, summed in self._sums.items()}
        if TOKENS_PER_SECOND not in figures and self._num_tokens:
            figures[TOKENS_PER_SECOND] = self._num_tokens / max(now_s - self._line_s, 1e-9)
        if self._num_skipped:
            figures["skipped iterations"] = self._num_skipped
        line = interval_line(iteration, total, figures, self._seconds_left(iteration, total, now_s))
        self._sums, self._line_s = {}, now_s
        self._num_added = self._num_skipped = self._num_tokens = 0
        return line

    def _seconds_left(self, iteration: int, total: int, now_s: float) -> float:
        """By the pace since the first line, whose iteration takes longer than others."""
        if self._first is None:
            self._first = iteration, now_s
            return (total - iteration) * (now_s - self._began_s)
        first, first_s = self._first
        return (total - iteration) * (now_s - first_s) / max(iteration - first, 1)


def interval_line(iteration: int, total: int, figures: Mapping[str, float], seconds_left: float) -> str:
    """The line as text.

    Args:
        iteration: number of iterations done.
        total: of the whole run.
        figures: name -> mean, in the order in which they are shown.
        seconds_left: until the run's end.
    """
    pairs = {key: f"{key}: {_text(key, value)}" for key, value in figures.items()}
    while True:
        line = " | ".join([f"iteration {iteration}/{total}", *pairs.values(), f"time left: {duration(seconds_left)}"])
        if len(line) <= MAX_COLUMNS or not pairs:
            return line
        pairs.pop(next((key for key in _LEFT_OUT_FIRST if key in pairs), [*pairs][-1]))


def _text(key: str, value: float) -> str:
    """Losses with six significant digits, everything else shorter."""
    if not math.isfinite(value):
        return str(value)
    if key.endswith("loss"):
        return f"{value:#.6g}"
    return f"{value:.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """``0:04:10``, and ``2d 03:15`` from a day on; ``unknown`` where it is not a number."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}" if days else f"{hours}:{minutes:02}:{rest:02}"
