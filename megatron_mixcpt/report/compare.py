"""What was learned and what was forgotten: scores of a domain and of all else, averaged, and held against the base.

A *gain* is positive when a model is better than the base: for texts the bits per byte saved, in percent of the base's;
for tasks percentage points; for validation sets the loss below the teacher's, in percent of it. Averages are of all
columns alike that all models have: averages of something else would not compare.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.log_names import STUDENT_LOSS, TEACHER_LOSS, of_validation, validation_sets
from megatron_mixcpt.report.inputs import Evaluation, Score, TrainingRun, method_of

DOMAIN, GENERAL = "domain", "general"
SIDES = (DOMAIN, GENERAL)
_TEACHER_NAME = "teacher"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """The spread of a figure of each seed; None where a seed has no figure."""
        found = list(values)
        known = tuple(value for value in found if value is not None)
        return cls(known) if len(known) == len(found) else None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Column:
    """A score that some models have."""

    side: str
    """``domain`` or ``general``."""
    suite: str
    name: str
    detail: str


@dataclass(frozen=True)
class Comparison:
    """Models against the base on scores of one unit."""

    title: str
    unit: str
    """Unit of the scores."""
    gain_unit: str
    higher_is_better: bool
    columns: tuple[Column, ...]
    """Domain first."""
    scores: Mapping[str, Mapping[Column, float]]
    """Scores of each model, the base among them, or of each run's teacher."""
    bases: Mapping[str, str]
    """Model -> the model in ``scores`` that it is held against; without an entry: a base itself."""

    def shared(self, side: str) -> list[Column]:
        """The columns of one side that all models have."""
        columns = [column for column in self.columns if column.side == side]
        return [column for column in columns if all(column in table for table in self.scores.values())]

    def average(self, name: str, side: str) -> float | None:
        """The mean of a model's scores of one side, of the columns that all have; None where there are none."""
        shared = self.shared(side)
        return statistics.fmean(self.scores[name][column] for column in shared) if shared else None

    def gain(self, name: str, side: str) -> float | None:
        """How much better a model's average is than its base's; None where one of them is not known."""
        if name not in self.bases:
            return None
        average, base = self.average(name, side), self.average(self.bases[name], side)
        if average is None or not base:
            return None
        return average - base if self.higher_is_better else 100 * (1 - average / base)

    def methods(self) -> list[str]:
        """The methods that are held against a base, those that learned most of the domain first."""
        learned = self.gains(DOMAIN)
        names = dict.fromkeys(method_of(name) for name in self.bases)
        return sorted(names, key=lambda name: -learned[name].mean if name in learned else math.inf)

    def gains(self, side: str) -> dict[str, Spread]:
        """The gains by method, over its seeds; methods with a seed without one are left out."""
        found: dict[str, list[float | None]] = {}
        for name in self.bases:
            found.setdefault(method_of(name), []).append(self.gain(name, side))
        spreads = {method: Spread.of(gains) for method, gains in found.items()}
        return {method: spread for method, spread in spreads.items() if spread}


def check_domain(domain: Sequence[str], evaluations: Iterable[Evaluation], runs: Iterable[TrainingRun]) -> None:
    """Raise ConfigError where ``--domain`` names what no evaluation and no run has."""
    scores = [score for evaluation in evaluations for score in evaluation.scores]
    known = {name for score in scores for name in _names(score)} | {name for run in runs for name in validated(run)}
    for name in domain:
        if name not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"--domain {name}: no such text, task, suite or validation set; there are: {listed}")


def validated(run: TrainingRun) -> list[str]:
    """The validation sets that a run measured for student and teacher."""
    student = validation_sets(STUDENT_LOSS, run.log.curves)
    return [name for name in validation_sets(TEACHER_LOSS, run.log.curves) if name in student]


def last_validation(run: TrainingRun, curve: str, name: str) -> float:
    """The last value of ``curve`` on a validation set that :func:`validated` names."""
    return run.log.curves[of_validation(curve, name)][-1][1]


def compare_evaluations(evaluations: Sequence[Evaluation], base: str | None, domain: Sequence[str]) -> list[Comparison]:
    """Texts and tasks, those of the two that there are. ``base`` names the evaluation of the model before training."""
    compared = []
    for is_text in (True, False):
        tables = {item.name: _columns(item, is_text, domain) for item in evaluations}
        tables = {name: table for name, table in tables.items() if table}
        bases = {name: base for name in tables if name != base} if base in tables else {}
        if not tables:
            continue
        compared.append(
            Comparison(
                title="Texts" if is_text else "Tasks",
                unit="bits per byte" if is_text else "percent",
                gain_unit="% of the base's bits" if is_text else "percentage points",
                higher_is_better=not is_text,
                columns=_ordered(tables.values()),
                scores=tables,
                bases=bases,
            )
        )
    return compared


def compare_validation(runs: Sequence[TrainingRun], domain: Sequence[str]) -> Comparison | None:
    """Each run's last validation against its teacher's; None where no run measured any."""
    scores: dict[str, dict[Column, float]] = {}
    bases = {}
    for run in runs:
        sets = {
            Column(DOMAIN if name in domain else GENERAL, "", name, "held-out loss"): name for name in validated(run)
        }
        if sets:
            teacher = {column: last_validation(run, TEACHER_LOSS, name) for column, name in sets.items()}
            bases[run.name] = _add_teacher(scores, teacher, run.name)
            scores[run.name] = {column: last_validation(run, STUDENT_LOSS, name) for column, name in sets.items()}
    if not scores:
        return None
    return Comparison(
        title="Validation sets",
        unit="nats per token",
        gain_unit="% of the teacher's loss",
        higher_is_better=False,
        columns=_ordered(scores.values()),
        scores=scores,
        bases=bases,
    )


def _add_teacher(scores: dict[str, dict[Column, float]], teacher: dict[Column, float], run: str) -> str:
    """Add a run's teacher to ``scores``, or to one there that measured the same; returns its name."""
    for name, known in scores.items():
        both = known.keys() & teacher.keys()
        # The same model measured at another layout rounds otherwise.
        if name.startswith(_TEACHER_NAME) and all(math.isclose(known[c], teacher[c], rel_tol=1e-4) for c in both):
            known.update(teacher)
            return name
    name = f"{_TEACHER_NAME} of {run}" if _TEACHER_NAME in scores else _TEACHER_NAME
    scores[name] = teacher
    return name


def _columns(evaluation: Evaluation, is_text: bool, domain: Sequence[str]) -> dict[Column, float]:
    return {
        Column(
            DOMAIN if any(name in domain for name in _names(score)) else GENERAL, score.suite, score.name, score.detail
        ): score.value
        for score in evaluation.scores
        if score.is_text is is_text and math.isfinite(score.value)
    }


def _names(score: Score) -> list[str]:
    """What ``--domain`` may call a score."""
    return [score.name, *([score.suite, f"{score.suite}/{score.name}"] if score.suite else [])]


def _ordered(tables: Iterable[Mapping[Column, float]]) -> tuple[Column, ...]:
    """All columns, domain first, each side in the order of first appearance."""
    seen = dict.fromkeys(column for table in tables for column in table)
    return tuple(sorted(seen, key=lambda column: SIDES.index(column.side)))
