"""The table of formats: names, kinds, and a new format that needs nothing but its entry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_mixcpt.data.reading import sources
from megatron_mixcpt.data.reading.formats.registry import FORMATS
from megatron_mixcpt.data.reading.input_format import FileRange, InputFormat, Row, Source
from megatron_mixcpt.data.reading.parts import plan_parts
from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.reading.sources import find_sources, format_of
from megatron_mixcpt.errors import DataError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ("jsonl", "")),
        ("a.b.JSON.Gz", ("jsonl", ".gz")),
        ("wiki_07", ("jsonl", "")),
        ("wiki_07.bz2", ("jsonl", ".bz2")),
        ("wiki_x", None),
        ("a.txt.zst", ("txt", ".zst")),
        ("a.parquet", ("parquet", "")),
        ("a.parquet.gz", None),
        ("a.arrow", ("arrow", "")),
        (".jsonl", None),
        ("a.csv", None),
        ("a.gz", None),
    ],
)
def test_a_files_name_says_its_format(name: str, expected: tuple[str, str] | None) -> None:
    found = format_of(Path(name))
    assert (found and (found[0].name, found[1])) == expected


class Pipes(InputFormat):
    """Texts between bars; each can be read alone."""

    name = "pipes"
    suffixes = (".pipes",)
    kinds = ("cpt",)

    def read(self, source: Source, fields: object, start: int, end: int | None, keep_long: bool) -> Iterator[list[Row]]:
        yield [{"text": text} for text in source.path.read_text().split("|")[start:end]]

    def ranges(self, source: Source, range_bytes: int) -> list[FileRange]:
        return [FileRange(0, 1, range_bytes), FileRange(1, None, range_bytes)]


def test_a_new_format_is_one_class_and_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pipes").write_text("one|two|three")
    with pytest.raises(DataError, match=r"\.txt, these with \.gz, \.bz2 or \.zst, \.parquet or \.arrow$"):
        find_sources("cpt", [str(tmp_path / "a.pipes")])
    monkeypatch.setattr(sources, "FORMATS", (*FORMATS, Pipes()))
    assert [record.text for record in read_records("cpt", [str(tmp_path)])] == ["one", "two", "three"]
    parts = plan_parts(find_sources("cpt", [str(tmp_path)]))
    assert [(segment.start, segment.end) for part in parts for segment in part.segments] == [(0, 1), (1, None)]
    with pytest.raises(DataError, match=r"--sft .*a\.pipes: a \.pipes file holds no such records; give it to --cpt"):
        find_sources("sft", [str(tmp_path)])
