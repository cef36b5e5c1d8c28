"""The report page: read back, its figures equal to what went in; what is missing is said, bad input refused."""

import re
import statistics
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_mixcpt.report import arguments as report_arguments
from megatron_mixcpt.report.arguments import build_parser, choose_base, gather, missing
from megatron_mixcpt.report.inputs import method_of, read_fas
from megatron_mixcpt.report.page import PAGE_NAME, write_page
from tests.unit.report.tiny_experiment import BASE, METHODS, make_experiment, write_log, write_results

ROOT = Path(__file__).resolve().parents[3]


class Page(HTMLParser):
    """Tables as lists of rows of texts, by their labels; pictures; everything else as text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._in_cell = False
        self._in_style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe"), "nothing runs and nothing is fetched"
        self._in_style = tag == "style"
        given = dict(attributes)
        if tag == "table":
            self._rows = self.tables.setdefault(given["aria-label"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._in_cell = True
        elif tag == "img":
            self.pictures.append(given)

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")
        self._in_style = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self._rows[-1][-1] += data
        elif not self._in_style:
            self.text += data


def make_page(folder: Path, *flags: str) -> Page:
    """Run the tool's steps with these flags; the page is written to ``folder/report``."""
    given = build_parser("").parse_args([*flags, "--output", str(folder / "report")])
    inputs, problems = gather(given)
    base, domain = choose_base(inputs, given.base), given.domain or report_arguments.DEFAULT_DOMAIN
    notes = [*missing(inputs, base, domain), *problems]
    write_page(inputs, given.output, title=given.title, base=base, domain=domain, notes=notes)
    return Page((folder / "report" / PAGE_NAME).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def page(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return make_page(experiment, str(experiment), "--domain", "French", "medicine", "cpt", "--title", "A <title>")


def numbers(text: str) -> list[float]:
    """The numbers in a cell."""
    return [float(number.replace("\N{MINUS SIGN}", "-")) for number in re.findall(r"[-\N{MINUS SIGN}]?\d+\.\d+", text)]


def test_texts_are_as_measured(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["Texts, in bits per byte"]}
    assert [cell for cell in rows["model"] if "gain" not in cell] == [
        f"{n}30 bytes in windows of 512, stride 256" for n in ("French", "English")
    ]
    assert [numbers(cell) for cell in rows["base (base)"]] == [[BASE[0]], [], [BASE[1]], []]
    for method, seeds in METHODS.items():
        expected = []
        for place in (0, 1):
            values = [figures[place] for figures in seeds]
            gains = [100 * (BASE[place] - value) / BASE[place] for value in values]
            expected += [
                statistics.mean(values),
                statistics.stdev(values),
                statistics.mean(gains),
                statistics.stdev(gains),
            ]
        found = [number for cell in rows[method] for number in numbers(cell)]
        assert found == pytest.approx(expected, abs=0.0051), "two decimals of the gains"
        assert found[0] == pytest.approx(expected[0], abs=0.000051), "four decimals of bits per byte"


def test_tasks_are_in_percent_and_gain_points(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["Tasks, in percent"]}
    values = [100 * figures[2] for figures in METHODS["cpt"]]
    assert numbers(rows["cpt"][0])[0] == pytest.approx(statistics.mean(values), abs=0.0051)
    assert numbers(rows["cpt"][1])[0] == pytest.approx(statistics.mean(values) - 100 * BASE[2], abs=0.0051)
    assert numbers(rows["mixcpt"][2])[0] == 20.0
    assert rows["model"][0] == "medicine: pubmedqaacc, 0-shot, 9 questions"


def test_validation_is_held_against_the_teacher(page: Page) -> None:
    rows = {row[0]: row[1:] for row in page.tables["Validation sets, in nats per token"]}
    assert [numbers(cell) for cell in rows["teacher (base)"]] == [[3.0], [], [2.0], []]
    # The last validation: 0.3 below the teacher's 3.0; 0.1 and a hundredth per seed above its 2.0.
    assert [numbers(cell)[0] for cell in rows["mixcpt"]] == pytest.approx([2.7, 10.0, 2.12, -6.0])


def test_who_learned_and_who_kept(page: Page) -> None:
    assert "Learned the domain best: cpt (+20.00 ± 1.60 % of the base's bits)." in page.text
    assert "Kept everything else best: mixcpt (+0.00 ± 1.25 % of the base's bits)." in page.text


def test_settings_that_differ_and_the_data(page: Page) -> None:
    settings = next(rows for label, rows in page.tables.items() if label.startswith("Arguments"))
    assert settings == [["run", "distillation"], ["cpt", "none"], ["mixcpt", "lssd"]]
    assert [row[1] for row in page.tables["What the mixtures hold"]] == ["kind", "cpt", "sft", "dpo"]


def test_every_picture_is_inside_described_and_beside(page: Page, experiment: Path) -> None:
    assert all(picture["src"].startswith("data:image/svg+xml;base64,") for picture in page.pictures)
    alts = [picture["alt"] for picture in page.pictures]
    assert any(alt.startswith("Domain: learned? Gain over the base") and "cpt +20.00 ± 1.60" in alt for alt in alts)
    assert any(alt.startswith("Validation: general") and "the teacher's constant 2" in alt for alt in alts)
    assert any("sft: 200 samples" in alt for alt in alts)
    kl = next(alt for alt in alts if alt.startswith("Training: KL to the teacher, documents"))
    assert ": mixcpt from 0.5 to 0.5." in kl, "no teacher, no curve; no samples, no point"
    assert len(list((experiment / "report").glob("*.png"))) == len(page.pictures) == 12


def test_names_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> $x^2$ {{ 7*7 }}"
    write_results(tmp_path / "a", BASE)
    write_results(tmp_path / "b", METHODS["cpt"][0])
    write_log(tmp_path / "log", "cpt", 1)
    flags = [
        "--evaluation",
        f"base={tmp_path / 'a'}",
        f"{evil}={tmp_path / 'b'}",
        "--run",
        f"{evil}={tmp_path / 'log'}",
    ]
    page = make_page(tmp_path, *flags, "--domain", "French", "--title", evil)
    assert evil in page.text and evil in [row[0] for row in page.tables["Texts, in bits per byte"]]


def test_missing_parts_are_said(tmp_path: Path) -> None:
    write_log(tmp_path / "run" / "tensorboard", "mixcpt", 1)
    page = make_page(tmp_path, "--run", f"mixcpt={tmp_path / 'run'}")
    assert "Evaluations: none" in page.text and "Data: no mixture" in page.text
    assert "Format alignment scores: none" in page.text and "Training curves" not in page.text
    assert "Domain: learned? mixcpt: +10.00 % of the teacher's loss." in page.text


def test_without_base_and_domain_scores_are_shown_as_they_are(tmp_path: Path) -> None:
    write_results(tmp_path / "a", BASE)
    page = make_page(tmp_path, "--evaluation", f"a={tmp_path / 'a'}")
    assert "(--base NAME)" in page.text and "--domain; there are: English, French, gsm8k" in page.text
    assert page.tables["Texts, in bits per byte"][-1] == ["a", "1.2500", "0.8000", "1.0250"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to report on"),
        (["{folder}/nowhere"], "no such folder"),
        (["{folder}/empty"], "no training log, results.json"),
        (["--run", "x"], "--run x: expected NAME=PATH"),
        (["--run", "x={folder}/empty"], "no TensorBoard log"),
        (["--evaluation", "x={folder}/nowhere"], "No such file"),
        (["--evaluation", "x={folder}/bad.json"], "bad.json: not as tools/evaluate.py writes it"),
        (["--scores", "x={folder}/bad.jsonl"], "bad.jsonl:2: no line of tools/score_alignment.py"),
        (["--evaluation", "x={folder}/good", "x={folder}/good"], "x is .* already"),
        (
            ["--evaluation", "x={folder}/good", "--domain", "Klingon"],
            "--domain Klingon: no such text.* English, French",
        ),
        (["--evaluation", "x={folder}/good", "--base", "y"], "--base y: no such evaluation; there are: x"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"perplexity": 3}', encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"kind": "sft", "fas": 1.0}\n{"kind": "sft"}\n', encoding="utf-8")
    write_results(tmp_path / "good", BASE)
    with pytest.raises(Exception, match=message) as caught:
        make_page(tmp_path, *(flag.format(folder=tmp_path) for flag in flags))
    assert type(caught.value).__name__ in ("ConfigError", "DataError") and "\n" not in str(caught.value)


def test_what_is_found_but_damaged_is_left_out_and_said(tmp_path: Path) -> None:
    write_results(tmp_path / "evaluations" / "base", BASE)
    (tmp_path / "scores.jsonl").write_text("not json\n", encoding="utf-8")
    page = make_page(tmp_path, str(tmp_path))
    assert "scores.jsonl:1: no line of tools/score_alignment.py" in page.text


def test_seeds_are_one_method() -> None:
    names = ["mixcpt/seed-1", "mixcpt-seed2", "mixcpt_seed_3", "mixcpt seed 4", "mixcpt"]
    assert {method_of(name) for name in names} == {"mixcpt"}
    assert method_of("seed-1") == "seed-1" and method_of("alpha-0.5") == "alpha-0.5"


def test_scores_file(experiment: Path) -> None:
    assert {kind: len(scores) for kind, scores in read_fas("scores", experiment / "scores.jsonl").fas.items()} == {
        "sft": 200,
        "dpo": 60,
    }


def test_the_tool_ends_on_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "report.py"), "--output", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (
        done.returncode == 1 and done.stderr.startswith("error: nothing to report on") and done.stderr.count("\n") == 1
    )
