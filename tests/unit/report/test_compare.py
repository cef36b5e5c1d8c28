"""What is averaged and held against what, where not everybody has every score."""

from megatron_mixcpt.report.compare import DOMAIN, GENERAL, compare_evaluations, compare_validation
from megatron_mixcpt.report.curves import training_charts, validation_charts
from megatron_mixcpt.report.inputs import Evaluation, Score, TrainingRun
from megatron_mixcpt.report.tables import score_table, settings_tables
from megatron_mixcpt.training_log import TrainingLog


def evaluation(name: str, **texts: float) -> Evaluation:
    return Evaluation(name, tuple(Score("", text, value, "windows of 512 tokens") for text, value in texts.items()), "")


def run(name: str, **validation: tuple[float, float]) -> TrainingRun:
    """A run whose last validation found (student, teacher) on each set."""
    curves = {}
    for text, (student, teacher) in validation.items():
        curves[f"ntp loss validation-{text}"] = [(0, teacher), (10, student)]
        curves[f"teacher ntp loss validation-{text}"] = [(0, teacher), (10, teacher)]
    return TrainingRun(name, TrainingLog(curves, {}))


def test_averages_are_of_the_columns_that_all_have() -> None:
    models = [
        evaluation("base", d=2.0, a=1.0, b=3.0),
        evaluation("x", d=1.0, a=1.5),
        evaluation("y", d=1.5, a=1.0, b=9.0),
    ]
    (texts,) = compare_evaluations(models, "base", ["d"])
    assert [column.name for column in texts.columns] == ["d", "a", "b"]
    assert [column.name for column in texts.shared(GENERAL)] == ["a"]
    assert {method: gain.mean for method, gain in texts.gains(DOMAIN).items()} == {"x": 50.0, "y": 25.0}
    assert {method: gain.mean for method, gain in texts.gains(GENERAL).items()} == {"x": -50.0, "y": 0.0}
    assert texts.methods() == ["x", "y"], "who learned most comes first"


def test_the_best_of_each_column_is_marked() -> None:
    """Of texts the lowest bits per byte and the largest gain; by hand."""
    (texts,) = compare_evaluations([evaluation("base", d=2.0, a=1.0), evaluation("x", d=1.0, a=1.5)], "base", ["d"])
    table = score_table(texts)
    best = {
        row.name: [heading for (heading, _), cell in zip(table.headings, row.cells, strict=True) if cell.best]
        for row in table.rows
    }
    assert best == {"base": ["a"], "x": ["d"]}


def test_other_windows_are_another_column() -> None:
    other = Evaluation("x", (Score("", "d", 1.0, "windows of 2048 tokens"),), "")
    (texts,) = compare_evaluations([evaluation("base", d=2.0), other], "base", ["d"])
    assert len(texts.columns) == 2 and texts.gains(DOMAIN) == {}


def test_runs_with_the_same_teacher_share_it() -> None:
    runs = [run("cpt", cpt=(2.0, 2.5)), run("mixcpt", cpt=(2.1, 2.50001), sft=(1.0, 1.1)), run("z", cpt=(2.2, 2.75))]
    comparison = compare_validation(runs, ["cpt"])
    assert comparison.bases == {"cpt": "teacher", "mixcpt": "teacher", "z": "teacher of z"}
    gains = {method: round(gain.mean, 2) for method, gain in comparison.gains(DOMAIN).items()}
    assert gains == {"cpt": 20.0, "mixcpt": 16.0, "z": 20.0}
    assert comparison.gains(GENERAL) == {}, "not all have sft"


def test_no_run_that_measured_no_comparison() -> None:
    assert compare_validation([TrainingRun("x", TrainingLog({"loss": [(1, 2.0)]}, {}))], ["cpt"]) is None


def test_curves_of_a_method_are_the_mean_over_its_seeds() -> None:
    runs = [run("x/seed-1", cpt=(2.0, 3.0)), run("x/seed-2", cpt=(2.5, 3.0))]
    (chart,) = validation_charts(runs)
    assert chart.teacher == (3.0,) and len(chart.lines) == 1
    line = chart.lines[0]
    assert (line.num_seeds, line.mean.tolist()) == (2, [3.0, 2.25])
    assert (line.low.tolist(), line.high.tolist()) == ([3.0, 2.0], [3.0, 2.5])


def test_what_stands_for_nothing_is_not_drawn() -> None:
    curves = {
        "lssd loss": [(1, 0.0), (2, 0.0)],  # no teacher
        "lssd loss sft": [(1, 0.5), (2, 0.0), (3, float("nan"))],  # no sample in the second batch
        "top-1 agreement": [(1, 1.0), (2, 0.0)],
    }
    charts = {chart.name: chart.lines[0] for chart in training_charts([TrainingRun("x", TrainingLog(curves, {}))])}
    assert {name: line.iterations.tolist() for name, line in charts.items()} == {
        "lssd loss sft": [1],
        "top-1 agreement": [1, 2],
    }


def test_named_sources_have_charts_of_their_own() -> None:
    """Kinds in their order, the sources of each by name; validation sets and unknown names are not among them."""
    names = ["validation-cpt.law", "sft", "cpt.replay", "web", "cpt.law"]
    curves = {"lssd loss": [(1, 0.5)]} | {f"lssd loss {name}": [(1, 0.5), (2, 0.0)] for name in names}
    charts = training_charts([TrainingRun("x", TrainingLog(curves, {}))])
    assert [(chart.name, chart.title.rpartition("teacher")[2]) for chart in charts] == [
        ("lssd loss", ""),
        ("lssd loss cpt.law", ", documents of law"),
        ("lssd loss cpt.replay", ", documents of replay"),
        ("lssd loss sft", ", instructions"),
    ]
    assert [chart.lines[0].iterations.tolist() for chart in charts[1:]] == [[1]] * 3


def test_long_curves_are_running_means() -> None:
    curve = [(iteration, float(iteration)) for iteration in range(1, 801)]
    (chart,) = training_charts([TrainingRun("x", TrainingLog({"ntp loss": curve}, {}))])
    line = chart.lines[0]
    assert chart.smoothed == 10 and len(line.iterations) == 791
    assert abs(line.iterations - line.mean).max() < 0.51, "a mean stands in the middle of what it is of"


def test_settings_are_compared_within_a_trainer() -> None:
    given = {
        "a/seed-1": {"distillation": "lssd", "seed": "1", "lr": "1"},
        "a/seed-2": {"distillation": "lssd", "seed": "2", "lr": "1"},
        "b/seed-1": {"distillation": "none", "seed": "1", "lr": "1"},
        "dpo": {"beta": "0.1", "lr": "2"},
    }
    tables = settings_tables([TrainingRun(name, TrainingLog({}, arguments)) for name, arguments in given.items()])
    assert list(tables) == ["continual pre-training"]
    table = tables["continual pre-training"]
    assert (table.headings, *table.rows) == (("run", "distillation", "seed"), ("a", "lssd", "1, 2"), ("b", "none", "1"))
