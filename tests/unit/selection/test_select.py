"""The output of a selection is what training reads; the report says what was left out and why."""

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.records import Conversation
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.selection.select import select_alignment
from megatron_mixcpt.selection.settings import SelectSettings
from tests.unit.selection.scores import line, ranked, save


def settings(scores: Path, **options: Any) -> SelectSettings:
    """Select instruction samples into ``out.jsonl`` beside the scores."""
    return SelectSettings(scores=scores, kind="sft", output=scores.parent / "out.jsonl", **options)


def test_the_output_is_what_training_reads(lines, tmp_path):
    scores = save(tmp_path / "scores.jsonl", [*lines, line(99, 9.0, kind="dpo")])
    report = select_alignment(settings(scores, strategy="high", top_k=10, rejects=tmp_path / "rest.jsonl"))
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
    report = select_alignment(settings(scores, strategy="high", top_k=2))
    assert [record.messages[0].content for record in read_records("sft", [str(tmp_path / "out.jsonl")])] == ["Q1", "Q2"]
    assert report["left_out"] == {"duplicate": 1, "not_selected": 1}


def test_without_matplotlib_there_is_no_picture(lines, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    scores = save(tmp_path / "scores.jsonl", lines)
    assert select_alignment(settings(scores, strategy="low", top_k=3))["picture"] is None
    assert (tmp_path / "out.jsonl").exists() and not (tmp_path / "out.jsonl.png").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """1,000 samples and 10,000 take the same memory, but for the heap of K."""
    peaks = []
    for count in (1_000, 10_000):
        scores = save(tmp_path / f"{count}.jsonl", [line(number, 1 + number % 97 / 97) for number in range(count)])
        tracemalloc.start()
        select_alignment(settings(scores, strategy="half", top_k=100))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", r"scores.jsonl:1: no valid id; give an output of tools/score_alignment.py"),
        (json.dumps(line(1, 1.0)) + "\nx\n", r"scores.jsonl:2: not JSON"),
        (json.dumps(line(1, 1.0, kind="dpo")) + "\n", "holds no sft samples; score some, or choose the other --kind"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        select_alignment(settings(tmp_path / "scores.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.jsonl"]
