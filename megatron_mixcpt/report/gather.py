"""Reads everything that a report is made of, and notes what the page will lack."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.named_paths import parse_named_paths
from megatron_mixcpt.report.compare import check_domain, validated
from megatron_mixcpt.report.inputs import Inputs, read_evaluation, read_fas, read_mixture, read_run
from megatron_mixcpt.report.search import search
from megatron_mixcpt.report.settings import ReportSettings

DEFAULT_BASE = "base"
DEFAULT_DOMAIN = ("cpt",)


@dataclass(frozen=True)
class Gathered:
    """What the page shows, and how it is compared."""

    inputs: Inputs
    base: str | None
    """Name of the evaluation of the model before training; None where it is not known."""
    domain: Sequence[str]
    """Texts, tasks, suites and validation sets that belong to the domain."""
    notes: Sequence[str]
    """What the reader should know is missing, a sentence each."""


def gather(settings: ReportSettings) -> Gathered:
    """Read what the flags name, then what the folders hold.

    Raises:
        ConfigError: nothing is left to report on, or a flag names something that does not exist or is given twice.
        DataError: a file that a flag names cannot be read.
    """
    inputs = Inputs()
    _read_named("--run", settings.run, read_run, inputs.runs)
    _read_named("--evaluation", settings.evaluation, read_evaluation, inputs.evaluations)
    _read_named("--mixture", settings.mixture, read_mixture, inputs.mixtures)
    _read_named("--scores", settings.scores, read_fas, inputs.fas)
    problems = [problem for folder in settings.folders for problem in search(folder, inputs)]
    if not (inputs.runs or inputs.evaluations or inputs.mixtures or inputs.fas):
        raise ConfigError(
            "nothing to report on: give a FOLDER of runs and evaluations, or --run, --evaluation, --mixture, --scores"
            + (f" ({problems[0]})" if problems else "")
        )
    check_domain(settings.domain, inputs.evaluations, inputs.runs)
    base, domain = choose_base(inputs, settings.base), settings.domain or DEFAULT_DOMAIN
    notes = [*missing(inputs, base, domain), *(f"Left out: {problem}" for problem in problems)]
    return Gathered(inputs, base, domain, notes)


def _read_named[T](flag: str, given: Sequence[str], read: Callable[[str, Path], T], items: list[T]) -> None:
    """Append what the values ``NAME=PATH`` of a flag name to ``items``."""
    items.extend(read(name, Path(path)) for name, path in parse_named_paths(flag, given).items())


def choose_base(inputs: Inputs, given: str | None) -> str | None:
    """The name of the base's evaluation, or None where it is not known. Raises ConfigError where there is none."""
    names = [evaluation.name for evaluation in inputs.evaluations]
    if given and given not in names:
        raise ConfigError(f"--base {given}: no such evaluation; there are: {', '.join(names) or 'none'}")
    return given or (DEFAULT_BASE if DEFAULT_BASE in names else None)


def missing(inputs: Inputs, base: str | None, domain: Sequence[str]) -> list[str]:
    """What the page has nothing about, and what would change that, a sentence each."""
    scores = {score.name for evaluation in inputs.evaluations for score in evaluation.scores}
    suites = {score.suite for evaluation in inputs.evaluations for score in evaluation.scores if score.suite}
    sentences = {
        "Evaluations: none (tools/evaluate.py makes them; --evaluation NAME=DIR).": not inputs.evaluations,
        "Gains of the evaluations: the evaluation of the model before training is not known (--base NAME).": bool(
            inputs.evaluations and base is None
        ),
        f"The domain of the evaluations: none of their scores belongs to the domain (--domain; there are: "
        f"{', '.join(sorted(scores | suites))}).": bool(scores and not (scores | suites) & set(domain)),
        "Training curves: no log (--run NAME=CHECKPOINTS).": not inputs.runs,
        "Validation during training: no run measured student and teacher on held-out text (--split 99,1,0 or "
        "--validation NAME=PATH in training).": bool(inputs.runs and not any(validated(run) for run in inputs.runs)),
        "Format alignment scores: none (tools/score_alignment.py makes them; --scores NAME=FILE).": not inputs.fas,
        "Data: no mixture (--mixture NAME=DIR).": not inputs.mixtures,
    }
    return [sentence for sentence, is_missing in sentences.items() if is_missing]
