"""Every tool reads records in one way: lines, rejects and notes are counted, in whole files and in ranges."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_reader import ReadCounts, RecordReader, Reject
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.errors import ConfigError, DataError

GOOD = {"prompt": "[INST] Q [/INST]", "response": "A"}
ROWS = [json.dumps(GOOD), "", '{"prompt": "Q"}', json.dumps(GOOD | {"score": 0}), json.dumps(GOOD), "{"]


def write(folder: Path) -> list:
    (folder / "a.jsonl").write_text("\n".join(ROWS))
    return find_sources("sft", [str(folder)])


def reader(on_bad_record: str = "skip", **options) -> RecordReader:
    return RecordReader("sft", KindSettings(**options), ReadingSettings(on_bad_record=on_bad_record))


def test_rejects_and_notes_are_counted_by_name(tmp_path: Path) -> None:
    read = reader(filter="score != 0")
    found = [(line, record) for _, line, record in read.records(write(tmp_path))]
    rejects = {line: record.reason for line, record in found if isinstance(record, Reject)}
    assert rejects == {3: "missing_field", 4: "filtered", 6: "invalid_json"}
    assert [line for line, _ in found] == [1, 3, 4, 5, 6]
    assert read.counts.records == 5 and read.counts.notes == {"template llama2": 2}
    assert read.counts.rejects == {"missing_field": 1, "filtered": 1, "invalid_json": 1}


def test_counts_of_ranges_add_up_to_those_of_the_file(tmp_path: Path) -> None:
    [source] = write(tmp_path)
    whole = reader()
    expected = [record for _, _, record in whole.records([source])]
    parts, total, found = reader(), ReadCounts(), []
    for start in range(0, source.size, 20):
        before = source.format.lines_before(source, start) if start else 0
        for line, record in parts.records_of_range(source, start, min(start + 20, source.size)):
            assert ROWS[before + line - 1]
            found.append(record)
        total += parts.take_counts()
    assert found == expected and total == whole.counts and total.records == 5


def test_first_bad_record_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    [source] = write(tmp_path)
    with pytest.raises(DataError, match=f'{source.path}:3: expected "messages".*--on-bad-record skip'):
        list(reader("error").records([source]))
    with pytest.raises(DataError, match=f"{source.path}:6: invalid JSON"):
        list(reader("error").records_of_range(source, source.size - 1))


def test_too_many_rejects_fail() -> None:
    settings = ReadingSettings(on_bad_record="skip", max_rejects=0.5)
    settings.check_rejects("--sft", 4, {"empty": 2, "filtered": 2})
    with pytest.raises(DataError, match=r"--sft: 3 of 4 records are bad \(75.00%: 3 empty\), more than --max-rejects"):
        settings.check_rejects("--sft", 4, {"empty": 3})


def test_rules_that_cannot_be_read_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="--keep-templates none: no such rule"):
        ReadingSettings(keep_templates=("none",))


def test_texts_with_carriage_returns_are_counted_and_kept(tmp_path: Path) -> None:
    rows = [{"text": "a\r\nb"}, {"text": "a\nb"}, {"text": "a\r\n" * (1 << 19)}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\r\n" for row in rows))
    (tmp_path / "b.txt").write_bytes(b"a\r\nb")
    read = RecordReader("cpt", KindSettings(), ReadingSettings())
    texts = [record.text for *_, record in read.records(find_sources("cpt", [str(tmp_path)]))]
    assert [len(text) for text in texts] == [4, 3, 3 << 19, 4]
    assert read.counts.notes == {"lines that end in a carriage return, kept as they are": 3}


def test_pairs_without_a_preference_are_left_out_by_name(tmp_path: Path) -> None:
    pairs = [{"prompt": "Q", "chosen": "A", "rejected": "A"}] * 9 + [{"prompt": "Q", "chosen": "A", "rejected": "B"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    sources = find_sources("dpo", [str(tmp_path)])
    read = RecordReader("dpo", KindSettings(), ReadingSettings())
    assert sum(not isinstance(record, Reject) for *_, record in read.records(sources)) == 1
    assert read.counts.rejects == {"equal_sides": 9} and not read.counts.notes
    read = RecordReader("dpo", KindSettings(), ReadingSettings(), keeps_equal_sides=True)
    assert sum(not isinstance(record, Reject) for *_, record in read.records(sources)) == 10
    assert read.counts.notes == {"chosen and rejected are equal, the text is used": 9}
