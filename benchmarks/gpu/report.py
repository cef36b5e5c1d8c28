"""What a check found: one line for each figure, with its verdict, written as JSON.

A *wrong* result is one that no machine may give: it fails the kit. A time is not wrong but *slower than expected*, for
the expectation is of one card (an H100); it is shown, counted apart, and does not fail the kit. What could not run is
*not run*, with the reason, and never counts as passed.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RIGHT, WRONG, SLOWER, NOT_RUN = "right", "WRONG", "slower than expected", "not run"
MEASURED, NOT_JUDGED = "measured", "not judged on a CPU"


class NotRunError(Exception):
    """Something that the check needs is not on this machine; the message says what."""


@dataclass
class Finding:
    """One line of a check's results."""

    what: str
    verdict: str
    value: float | int | str | None = None
    unit: str = ""
    limit: float | None = None
    """The most that is right, or, for a time, as expected."""
    expected: str = ""
    note: str = ""

    def line(self) -> str:
        """For people."""
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        shown = "" if value is None else f" {value}{' ' * bool(self.unit)}{self.unit}"
        limit = "" if self.limit is None else f" (at most {self.limit:.4g})"
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.what}:{shown}{limit}{expected} - {self.verdict}{f': {self.note}' if self.note else ''}"


@dataclass
class Report:
    """The findings of one check; ``judges_times`` is False where times mean nothing."""

    judges_times: bool = True
    findings: list[Finding] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """Figures for whoever reads the JSON."""

    def add(self, finding: Finding) -> None:
        """Keep a finding and print it."""
        self.findings.append(finding)
        print(finding.line(), flush=True)

    def at_most(self, what: str, value: float, limit: float, unit: str = "", note: str = "") -> None:
        """A result that is wrong above ``limit``, and if it is NaN."""
        self.add(Finding(what, RIGHT if value <= limit else WRONG, value, unit, limit, note=note))

    def holds(self, what: str, is_so: bool, note: str = "") -> None:
        """A result that is wrong if it does not hold; ``note`` says what was seen instead."""
        self.add(Finding(what, RIGHT if is_so else WRONG, note="" if is_so else note))

    def time(self, what: str, value: float, limit: float, unit: str = "ms", expected: str = "", note: str = "") -> None:
        """A time, or a ratio of times, that is slower than expected above ``limit``."""
        verdict = (RIGHT if value <= limit else SLOWER) if self.judges_times else NOT_JUDGED
        if math.isnan(value):
            verdict = WRONG
        self.add(Finding(what, verdict, value, unit, limit, expected, note))

    def measured(self, what: str, value: float | int | str, unit: str = "", expected: str = "", note: str = "") -> None:
        """A figure that nothing depends on."""
        self.add(Finding(what, MEASURED, value, unit, expected=expected, note=note))

    def not_run(self, what: str, reason: object) -> None:
        """A part of the check that could not run."""
        self.add(Finding(what, NOT_RUN, note=_first_line(reason)))

    @property
    def verdict(self) -> str:
        """Of the check: the worst of its findings; not run where nothing of it ran."""
        verdicts = {finding.verdict for finding in self.findings}
        for worst in (WRONG, SLOWER):
            if worst in verdicts:
                return worst
        return NOT_RUN if verdicts <= {NOT_RUN} else RIGHT

    def save(self, path: Path) -> None:
        """Write it as JSON, in one step."""
        content = {"verdict": self.verdict, "findings": [asdict(finding) for finding in self.findings]}
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(content | {"data": self.data}, indent=1), encoding="utf-8")
        aside.rename(path)


def worst(values: Iterable[float]) -> float:
    """The largest, and NaN if any of them is; 0 of none. (``max`` passes over a NaN that is not the first.)"""
    values = list(values)
    return float("nan") if any(map(math.isnan, values)) else max(values, default=0.0)


def _first_line(reason: object) -> str:
    return next(iter(str(reason).strip().splitlines()), type(reason).__name__)
