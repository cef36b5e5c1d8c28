"""Progress of a long job: a bar on a terminal, a plain line every ten seconds in a log.

Inside a trainer the terminal is what :mod:`~megatron_mixcpt.terminal` says, and the lines are in the rank's log too;
elsewhere it is standard error.
"""

import sys
import time
from types import TracebackType

from megatron_mixcpt import terminal

LOG_SECONDS = 10.0


class Progress:
    """Counts what is done, and shows it with rate and remaining time. A context manager.

    Args:
        total: how much there is to do.
        label: what is done.
        unit: ``bytes``, shown in MB, or what is counted: ``samples``.
        done: how much of ``total`` was done before.
    """

    def __init__(self, total: int, label: str, unit: str = "bytes", done: int = 0):
        self._total = total
        self._label = label
        self._unit = unit
        self._done = self._before = done
        self._started = self._reported = time.monotonic()
        self._bar = None
        stream = terminal.stream()
        if stream.isatty():
            from tqdm import tqdm

            name = "B" if unit == "bytes" else f" {unit}"
            counted = {"total": total, "initial": done, "desc": label, "unit": name, "unit_scale": True}
            # Shown also where the bars of libraries are not.
            self._bar = tqdm(**counted, file=stream, disable=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, amount: int) -> None:
        """Count so much more as done."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(amount)
        if time.monotonic() - self._reported >= LOG_SECONDS:
            self._reported = time.monotonic()
            self._show(f"{self._label}: {self._line()}")

    def _show(self, line: str) -> None:
        if not terminal.is_apart():
            if self._bar is None:
                print(line, file=sys.stderr, flush=True)
        elif self._bar is None:
            terminal.say(line)
        else:
            print(line, flush=True)  # the rank's log

    def _line(self) -> str:
        rate = (self._done - self._before) / max(time.monotonic() - self._started, 1e-9)
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        share = self._done / max(self._total, 1)
        if self._unit == "bytes":
            return f"{share:.0%} of {self._total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, {left:,.0f} s left"
        return f"{share:.0%} of {self._total:,} {self._unit}, {rate:,.1f} a second, {left:,.0f} s left"
