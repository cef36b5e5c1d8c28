"""Strategies pick what sorting would, whatever the order of the file; the output is what training reads."""

import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.records import Conversation
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.selection.select import Selection, select_alignment
from megatron_mixcpt.selection.strategies import STRATEGIES, pick


def line(number: int, fas: float, perplexity: float = 2.0, kind: str = "sft") -> dict:
    messages = [{"role": "user", "content": f"Q{number}"}, {"role": "assistant", "content": "A"}]
    record = {"messages": messages}
    where = {"source": "file", "line": number + 1}
    return {"id": f"{number:032x}", "kind": kind, **where, "fas": fas, "perplexity": perplexity, "record": record}


@pytest.fixture
def lines() -> list[dict]:
    """60 samples with many ties, in no order."""
    draw = random.Random(0)
    made = [line(number, 0.5 + draw.randrange(12) / 10, draw.randrange(1, 9) / 1) for number in range(60)]
    draw.shuffle(made)
    return made


def save(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ranked(lines: list[dict], key) -> list[str]:
    return [line["id"] for line in sorted(lines, key=lambda line: (key(line), line["id"]))]


@pytest.mark.parametrize("num_wanted", [1, 7, 10, 59, 60, 90])
def test_strategies_pick_what_sorting_would(lines, num_wanted):
    high, low = ranked(lines, lambda line: -line["fas"]), ranked(lines, lambda line: line["fas"])
    assert pick(lines, STRATEGIES["high"], num_wanted, 0) == set(high[:num_wanted])
    assert pick(lines, STRATEGIES["low"], num_wanted, 0) == set(low[:num_wanted])
    easy = ranked(lines, lambda line: line["perplexity"])
    assert pick(lines, STRATEGIES["low-perplexity"], num_wanted, 0) == set(easy[:num_wanted])
    num_high = -(-num_wanted // 2)
    expected_half = set(high[:num_high]) | set(high[max(len(high) - num_wanted // 2, 0) :])
    assert pick(lines, STRATEGIES["half"], num_wanted, 0) == expected_half
    assert len(expected_half) == min(num_wanted, 60)


def test_random_is_drawn_by_seed_and_content_alone(lines):
    first = pick(lines, STRATEGIES["random"], 20, seed=1)
    assert first == pick(reversed(lines), STRATEGIES["random"], 20, seed=1)
    assert len(first) == 20 and first != pick(lines, STRATEGIES["random"], 20, seed=2)
    assert first <= pick(lines, STRATEGIES["random"], 30, seed=1)


def test_all_equal_halves_do_not_meet():
    equal = [line(number, 1.0) for number in range(10)]
    assert len(pick(equal, STRATEGIES["half"], 8, 0)) == 8


def test_the_output_is_what_training_reads(lines, tmp_path):
    scores = save(tmp_path / "scores.jsonl", [*lines, line(99, 9.0, kind="dpo")])
    report = select_alignment(Selection(scores, "sft", "high", 10), tmp_path / "out.jsonl", tmp_path / "rest.jsonl")
    records = list(read_records("sft", [str(tmp_path / "out.jsonl")]))
    wanted = set(ranked(lines, lambda line: -line["fas"])[:10])
    in_order = [line["record"]["messages"][0]["content"] for line in lines if line["id"] in wanted]
    assert all(isinstance(record, Conversation) for record in records)
    assert [record.messages[0].content for record in records] == in_order
    assert report["selected"] == 10 and report["left_out"] == {"not_selected": 50, "other_kind": 1}
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text())["fas_of_all"]["samples"] == 60
    assert sum(count for _, _, count in report["fas_of_selected"]["bins"]) == 10
    rest = [json.loads(text) for text in (tmp_path / "rest.jsonl").read_text().splitlines()]
    assert len(rest) == 51 and {item["reason"] for item in rest} == {"not_selected", "other_kind"}
    assert (tmp_path / "out.jsonl.png").read_bytes().startswith(b"\x89PNG")


def test_a_sample_that_stands_twice_is_selected_once(tmp_path):
    scores = save(tmp_path / "scores.jsonl", [line(1, 2.0), line(2, 1.5), line(1, 2.0), line(3, 1.0)])
    report = select_alignment(Selection(scores, "sft", "high", 2), tmp_path / "out.jsonl")
    assert [record.messages[0].content for record in read_records("sft", [str(tmp_path / "out.jsonl")])] == ["Q1", "Q2"]
    assert report["left_out"] == {"duplicate": 1, "not_selected": 1}


def test_without_matplotlib_there_is_no_picture(lines, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    scores = save(tmp_path / "scores.jsonl", lines)
    assert select_alignment(Selection(scores, "sft", "low", 3), tmp_path / "out.jsonl")["picture"] is None
    assert (tmp_path / "out.jsonl").exists() and not (tmp_path / "out.jsonl.png").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """1,000 samples and 10,000 take the same memory, but for the heap of K."""
    peaks = []
    for count in (1_000, 10_000):
        scores = save(tmp_path / f"{count}.jsonl", [line(number, 1 + number % 97 / 97) for number in range(count)])
        tracemalloc.start()
        select_alignment(Selection(scores, "sft", "half", 100), tmp_path / "out.jsonl")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", r"scores.jsonl:1: no id; give a file of tools/score_alignment.py"),
        (json.dumps(line(1, 1.0)) + "\nx\n", r"scores.jsonl:2: not JSON"),
        (json.dumps(line(1, 1.0, kind="dpo")) + "\n", "holds no sft sample; score some, or choose the other --kind"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        select_alignment(Selection(tmp_path / "scores.jsonl", "sft"), tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl"]
    with pytest.raises(ConfigError, match="--top-k 0: expected at least 1"):
        Selection(tmp_path / "scores.jsonl", "sft", top_k=0)


def test_the_command(repository, lines, tmp_path):
    scores = save(tmp_path / "scores.jsonl", lines)
    command = [sys.executable, str(repository / "tools" / "select_alignment.py"), "--scores", str(scores)]
    flags = ["--kind", "sft", "--strategy", "half", "--top-k", "9", "--output", str(tmp_path / "out.jsonl")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "out.jsonl: 9 samples; left out: 51 not_selected" in done.stdout
