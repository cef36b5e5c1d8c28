"""Progress of a long job: a bar on a terminal, a plain line every ten seconds in a log."""

import sys
import time
from types import TracebackType

LOG_SECONDS = 10.0


class Progress:
    """Counts bytes of input done, and shows them with rate and remaining time. A context manager."""

    def __init__(self, total_bytes: int, label: str):
        self._total = total_bytes
        self._label = label
        self._done = 0
        self._started = self._reported = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_bytes, desc=label, unit="B", unit_scale=True, file=sys.stderr)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, num_bytes: int) -> None:
        """Count ``num_bytes`` more as done."""
        self._done += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)
        elif time.monotonic() - self._reported >= LOG_SECONDS:
            self._reported = time.monotonic()
            print(f"{self._label}: {self._line()}", file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._started, 1e-9)
        left = max(self._total - self._done, 0) / max(rate, 1e-9)
        share = self._done / max(self._total, 1)
        return f"{share:.0%} of {self._total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, {left:,.0f} s left"
