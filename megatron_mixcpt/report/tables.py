"""The tables of the page as rows of text: scores in the paper's form, what was set differently, and the data."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_mixcpt.data.mixture.manifest import DatasetSummary
from megatron_mixcpt.report.charts import signed
from megatron_mixcpt.report.compare import SIDES, Column, Comparison, Spread
from megatron_mixcpt.report.inputs import Mixture, ScoresFile, TrainingRun, method_of, methods

NOTHING = "\N{EN DASH}"
# Of the engine's arguments: where a run reads and writes, and what each rank knows of itself.
_ELSEWHERE = {
    *(
        "run_record",
        "save",
        "load",
        "tensorboard_dir",
        "data_cache_path",
        "rank",
        "local_rank",
        "wandb_save_dir",
        "log_progress",
    ),
    *(
        "consumed_train_samples",
        "consumed_valid_samples",
        "iteration",
        "curr_iteration",
        "num_floating_point_operations_so_far",
    ),
}


@dataclass(frozen=True)
class Cell:
    """One figure of a table."""

    text: str
    note: str = ""
    """The spread, in smaller print."""
    best: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """One method's row."""

    name: str
    is_base: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ScoreTable:
    """The paper's form: a row per method, a column per score, each side's average and its change to the base."""

    title: str
    unit: str
    gain_unit: str
    higher_is_better: bool
    groups: tuple[tuple[str, int], ...]
    """Heading and number of columns of each side."""
    headings: tuple[tuple[str, str], ...]
    """The name of each column and how it was measured."""
    rows: tuple[ScoreRow, ...]


@dataclass(frozen=True)
class TextTable:
    """Any other table."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: range = range(0)
    """Which columns are figures."""


def score_table(comparison: Comparison) -> ScoreTable:
    """The rows of a comparison: bases first, then methods, each the mean over its seeds."""
    bases = {method_of(name) for name in comparison.bases.values()}
    others = dict.fromkeys(method_of(name) for name in comparison.scores if name not in comparison.bases)
    members: dict[str, list[str]] = {name: [] for name in (*others, *comparison.methods())}
    for name in comparison.scores:
        members[method_of(name)].append(name)
    groups, headings, cells = [], [], []
    for side in SIDES:
        columns = [column for column in comparison.columns if column.side == side]
        if columns:
            side_headings, side_cells = _side(comparison, side, columns, members)
            groups.append((side, len(side_headings)))
            headings += side_headings
            cells += side_cells
    rows = [
        ScoreRow(method, method in bases, tuple(column[place] for column in cells))
        for place, method in enumerate(members)
    ]
    return ScoreTable(
        title=comparison.title,
        unit=comparison.unit,
        gain_unit=comparison.gain_unit,
        higher_is_better=comparison.higher_is_better,
        groups=tuple(groups),
        headings=tuple(headings),
        rows=tuple(rows),
    )


def _side(
    comparison: Comparison, side: str, columns: Sequence[Column], members: Mapping[str, Sequence[str]]
) -> tuple[list[tuple[str, str]], list[list[Cell]]]:
    """Headings and cells, column by column, of one side's scores, average and change."""
    headings = [
        (f"{column.suite}: {column.name}" if column.suite else column.name, column.detail) for column in columns
    ]
    values = [
        [Spread.of(comparison.scores[name].get(column) for name in names) for names in members.values()]
        for column in columns
    ]
    digits = 2 if comparison.higher_is_better else 4
    cells = [_column_cells(column, digits, comparison.higher_is_better) for column in values]
    shared = len(comparison.shared(side))
    if len(columns) > 1 and shared:
        averages = [Spread.of(comparison.average(name, side) for name in names) for names in members.values()]
        headings.append(("average", f"of {shared} columns" if shared == len(columns) else f"of {shared} that all have"))
        cells.append(_column_cells(averages, digits, comparison.higher_is_better))
    gains = comparison.gains(side)
    if gains:
        headings.append(("gain", comparison.gain_unit))
        cells.append([_gain_cell(name, gains) for name in members])
    return headings, cells


def _gain_cell(name: str, gains: Mapping[str, Spread]) -> Cell:
    if name not in gains:
        return Cell(NOTHING)
    best = max(spread.mean for spread in gains.values())
    return Cell(signed(gains[name]), best=len(gains) > 1 and gains[name].mean == best)


def _column_cells(spreads: Sequence[Spread | None], digits: int, higher_is_better: bool) -> list[Cell]:
    known = [spread.mean for spread in spreads if spread]
    best = (max if higher_is_better else min)(known, default=None)
    return [_cell(spread, digits, len(known) > 1 and spread is not None and spread.mean == best) for spread in spreads]


def _cell(spread: Spread | None, digits: int, best: bool) -> Cell:
    if spread is None:
        return Cell(NOTHING)
    note = "" if spread.deviation is None else f"± {spread.deviation:.{digits}f}"
    return Cell(f"{spread.mean:.{digits}f}", note, best)


def settings_tables(runs: Sequence[TrainingRun]) -> dict[str, TextTable]:
    """What differs between the runs of each trainer, by its name; trainers without a difference are left out."""
    by_trainer: dict[str, list[TrainingRun]] = {}
    for run in runs:
        by_trainer.setdefault(_trainer(run), []).append(run)
    tables = {trainer: _settings_table(found) for trainer, found in by_trainer.items()}
    return {trainer: table for trainer, table in tables.items() if table}


def _trainer(run: TrainingRun) -> str:
    """Which trainer wrote the run, recognised by a flag that no other trainer has."""
    if "distillation" in run.log.arguments:
        return "continual pre-training"
    return "DPO" if "beta" in run.log.arguments else "SFT"


def _settings_table(runs: Sequence[TrainingRun]) -> TextTable | None:
    """What differs between the methods' arguments; None where nothing does or nobody knows.

    Methods are the rows or the columns, whichever makes the table the narrower one.
    """
    arguments = {method: [run.log.arguments for run in runs if run.method == method] for method in methods(runs)}
    arguments = {method: found for method, found in arguments.items() if any(found)}
    names = sorted({name for found in arguments.values() for one in found for name in one} - _ELSEWHERE)
    said = {
        name: [", ".join(dict.fromkeys(one.get(name, NOTHING) for one in found)) for found in arguments.values()]
        for name in names
    }
    different = {name: values for name, values in said.items() if len(set(values)) > 1}
    if not different:
        return None
    if len(different) > len(arguments):
        return TextTable(("argument", *arguments), tuple((name, *values) for name, values in different.items()))
    columns = zip(*different.values(), strict=True)
    return TextTable(("run", *different), tuple((method, *row) for method, row in zip(arguments, columns, strict=True)))


def mixture_table(mixtures: Sequence[Mixture]) -> TextTable | None:
    """Samples and tokens of each dataset of each mixture."""
    headings = ("mixture", "kind", "records", "samples", "tokens", "from")
    rows = []
    for mixture in mixtures:
        for dataset, summary in mixture.manifest.datasets.items():
            counts = (f"{count:,}" for count in (summary.records, summary.samples, summary.tokens))
            rows.append((mixture.name, dataset, *counts, _sources(summary)))
    return TextTable(headings, tuple(rows), range(2, 5)) if rows else None


def _sources(summary: DatasetSummary) -> str:
    names = [source.path.rsplit("/", 1)[-1] for source in summary.sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fas_table(files: Sequence[ScoresFile]) -> TextTable | None:
    """How many scores of which kind, and where they lie."""
    headings = ("scores", "kind", "samples", "lowest", "median", "highest")
    rows = []
    for file in files:
        for kind, scores in file.fas.items():
            places = (f"{value:.3f}" for value in (min(scores), statistics.median(scores), max(scores)))
            rows.append((file.name, kind, f"{len(scores):,}", *places))
    return TextTable(headings, tuple(rows), range(2, 6)) if rows else None
