"""Puts the page together: pictures, tables and what is missing, in one HTML file without anything from elsewhere."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jinja2

from megatron_mixcpt import __version__
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.jobs.whole_outputs import make_folder, write_whole
from megatron_mixcpt.report.charts import SIDE_TITLES, draw_curves, draw_fas, gain_pictures, signed
from megatron_mixcpt.report.compare import DOMAIN, GENERAL, Comparison, compare_evaluations, compare_validation
from megatron_mixcpt.report.curves import CurveChart, training_charts, validation_charts
from megatron_mixcpt.report.gather import Gathered
from megatron_mixcpt.report.inputs import methods
from megatron_mixcpt.report.style import Picture
from megatron_mixcpt.report.tables import ScoreTable, fas_table, mixture_table, score_table, settings_tables

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class Verdict:
    """A comparison in a sentence or two, its pictures and its table."""

    title: str
    sentences: tuple[str, ...]
    pictures: tuple[Picture, ...]
    table: ScoreTable


def write_page(gathered: Gathered, output: Path, *, title: str) -> int:
    """Write ``report.html`` and the pictures as PNG into ``output``, which is made; files of these names are replaced.

    Returns:
        How many pictures there are.

    Raises:
        ConfigError: the folder cannot be written, or matplotlib is missing.
    """
    inputs, domain = gathered.inputs, gathered.domain
    comparisons = compare_evaluations(inputs.evaluations, gathered.base, domain)
    validation = compare_validation(inputs.runs, domain)
    verdicts = [_verdict(item) for item in [*comparisons, *([validation] if validation else [])]]
    order = methods(inputs.runs)
    sections = [
        ("Validation during training", _curves(validation_charts(inputs.runs), order)),
        ("Training", _curves(training_charts(inputs.runs), order)),
        ("Format alignment scores", [draw_fas(scores) for scores in inputs.fas]),
    ]
    pictures = _with_distinct_names(
        itertools.chain(*(verdict.pictures for verdict in verdicts), *(drawn for _, drawn in sections))
    )
    text = _template().render(
        title=title,
        version=__version__,
        verdicts=verdicts,
        sections=[(heading, drawn) for heading, drawn in sections if drawn],
        evaluations=inputs.evaluations,
        settings=settings_tables(inputs.runs),
        mixtures=mixture_table(inputs.mixtures),
        fas=fas_table(inputs.fas),
        notes=gathered.notes,
    )
    try:
        _write(output, pictures, text)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from error
    return len(pictures)


def _write(output: Path, pictures: Sequence[Picture], text: str) -> None:
    """Write the files, each complete or not at all, the page last."""
    make_folder(output)
    for picture in pictures:
        write_whole(output / f"{picture.name}.png", picture.png)
    write_whole(output / PAGE_NAME, text)


def _verdict(comparison: Comparison) -> Verdict:
    sentences = []
    for side, words in ((DOMAIN, "Learned the domain best"), (GENERAL, "Kept everything else best")):
        gains = comparison.gains(side)
        best = max(gains, key=lambda method: gains[method].mean, default=None)
        if best and len(gains) == 1:
            sentences.append(f"{SIDE_TITLES[side]} {best}: {signed(gains[best])} {comparison.gain_unit}.")
        elif best and any(gain.mean != gains[best].mean for gain in gains.values()):
            sentences.append(f"{words}: {best} ({signed(gains[best])} {comparison.gain_unit}).")
        elif comparison.bases and not comparison.shared(side):
            sentences.append(f"{SIDE_TITLES[side]} Not known: no such score is common to all models.")
    return Verdict(comparison.title, tuple(sentences), tuple(gain_pictures(comparison)), score_table(comparison))


def _curves(charts: Iterable[CurveChart], order: Sequence[str]) -> list[Picture]:
    return [draw_curves(chart, order) for chart in charts]


def _with_distinct_names(pictures: Iterable[Picture]) -> list[Picture]:
    """The pictures; a picture with the name of an earlier one gets a number at the end of its name."""
    taken: dict[str, int] = {}
    named = []
    for picture in pictures:
        taken[picture.name] = taken.get(picture.name, 0) + 1
        number = taken[picture.name]
        named.append(picture if number == 1 else replace(picture, name=f"{picture.name}-{number}"))
    return named


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names and settings are other people's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
