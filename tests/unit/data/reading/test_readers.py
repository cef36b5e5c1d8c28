"""Files become rows: every format, ranges that cover each line once, and damage that is named."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_mixcpt.data.reading.formats.json_lines import parse_json
from megatron_mixcpt.data.reading.readers import read_blocks, read_records
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.errors import DataError

TEXTS = [f"text {number} é" for number in range(50)]
JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def texts_of(*paths: Path) -> list[str]:
    return [record.text for record in read_records("cpt", [str(path) for path in paths])]


def write_all_formats(folder: Path) -> list[Path]:
    table = pa.table({"text": TEXTS, "unused": list(range(50))})
    (folder / "a.jsonl").write_bytes(JSONL)
    (folder / "b.json.gz").write_bytes(gzip.compress(JSONL))
    (folder / "c.jsonl.zst").write_bytes(zstandard.compress(JSONL[:99]) + zstandard.compress(JSONL[99:]))
    pq.write_table(table, folder / "d.parquet", row_group_size=7)
    with pa.OSFile(str(folder / "e.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=11)
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    paths = write_all_formats(tmp_path)
    assert len(paths) == 5
    for path in paths:
        assert texts_of(path) == TEXTS, path
    assert texts_of(tmp_path) == TEXTS * 5
    assert texts_of(tmp_path / "[ab].*") == TEXTS * 2


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three"))
    assert texts_of(tmp_path) == ["one\n\ntwo\n", "three"]


def test_folder_saved_by_datasets_is_read_in_its_own_order(tmp_path: Path) -> None:
    for name, text in (("data-1.arrow", "second"), ("data-0.arrow", "first"), ("old.arrow", "not listed")):
        table = pa.table({"text": [text]})
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    files = [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    assert texts_of(tmp_path) == ["first", "second"]


@pytest.mark.parametrize("content", [JSONL, JSONL.removesuffix(b"\n"), JSONL.replace(b"\n", b"\r\n"), b"\n\n" + JSONL])
def test_byte_ranges_cover_each_line_once(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    [source] = find_sources("cpt", [str(path)])
    whole = [row for rows in read_blocks(source) for row in rows]
    for size in (1, 7, 64, 1000):
        bounds = [*range(0, len(content), size), len(content)]
        ranges = zip(bounds, bounds[1:], strict=False)
        parts = [row for start, end in ranges for rows in read_blocks(source, None, start, end) for row in rows]
        assert parts == whole


def test_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + JSONL)
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfplain")
    assert texts_of(tmp_path) == [*TEXTS, "plain"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    expected = f"the file is {encoding[:6].upper()}, not UTF-8; convert it, for example with: iconv -f"
    for name, text in (("a.jsonl", JSONL.decode()), ("a.txt", "plain text")):
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=f"{tmp_path / name}.*{expected}"):
            texts_of(tmp_path / name)


def test_files_with_byte_order_marks_may_be_joined(tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + JSONL
    (tmp_path / "a.jsonl").write_bytes(marked + marked)
    assert texts_of(tmp_path) == TEXTS * 2


@pytest.mark.parametrize("between", [b"\r", b"\xef\xbb\xbf"])
def test_records_without_a_line_feed_between_them_are_named(tmp_path: Path, between: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(between.join(JSONL.splitlines()))
    with pytest.raises(DataError, match="several records in the line, without a line feed between them"):
        texts_of(tmp_path)


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "first", "text": "second"}\n')
    with pytest.raises(DataError, match=f"{path}:2: the key 'text' stands twice in one object"):
        texts_of(path)


ARGUMENTS = [[("city", "X"), ("unit", None)], []]
COLUMNS = {
    "binary": pa.array([b"a", "\u00e9".encode()], pa.binary()),
    "large": pa.array([b"a", "\u00e9".encode()], pa.large_binary()),
    "dictionary": pa.array(["a", "\u00e9"]).dictionary_encode(),
    "nested": pa.array([{"x": {"text": [b"a"]}}, None], pa.struct({"x": pa.struct({"text": pa.list_(pa.binary())})})),
    "map": pa.array(ARGUMENTS, pa.map_(pa.string(), pa.string())),
    "maps": pa.array([ARGUMENTS, []], pa.list_(pa.map_(pa.string(), pa.string()))),
}


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("keep_long", [False, True])
def test_columns_of_every_type_become_plain_values(tmp_path: Path, suffix: str, keep_long: bool, monkeypatch) -> None:
    monkeypatch.setattr("megatron_mixcpt.data.reading.formats.table_rows.LONG_BYTES", 64)
    table, path = pa.table(COLUMNS), tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    [source] = find_sources("cpt", [str(path)])
    first, second = [row for rows in read_blocks(source, keep_long=keep_long) for row in rows]
    assert first == {
        "binary": "a",
        "large": "a",
        "dictionary": "a",
        "nested": {"x": {"text": ["a"]}},
        "map": {"city": "X", "unit": None},
        "maps": [{"city": "X", "unit": None}, {}],
    }
    assert [second[name] for name in ("binary", "dictionary", "nested", "map")] == ["\u00e9", "\u00e9", None, {}]


def test_rows_of_a_table_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"])}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet:2: byte 1 of a string is not UTF-8"):
        texts_of(tmp_path / "a.parquet")
    maps = pa.array([[("text", "a")], [("text", "a"), ("text", "b")]], pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"text": ["a", "b"], "m": maps}), tmp_path / "b.parquet")
    [source] = find_sources("cpt", [str(tmp_path / "b.parquet")])
    rows = [row for rows in read_blocks(source) for row in rows]
    assert rows[0] == {"text": "a", "m": {"text": "a"}} and rows[1].reason == "repeated_key"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_cut_compressed_file_is_named(tmp_path: Path, suffix: str) -> None:
    packed = gzip.compress(JSONL) if suffix == "gz" else zstandard.compress(JSONL)
    path = tmp_path / f"a.jsonl.{suffix}"
    for end in (len(packed) - 1, len(packed) // 2):
        path.write_bytes(packed[:end])
        with pytest.raises(DataError, match=f"{path}: cannot be read to its end"):
            texts_of(path)


def test_damaged_tables_are_named(tmp_path: Path) -> None:
    for path in write_all_formats(tmp_path)[3:]:
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=f"{path}: cannot be read"):
            texts_of(path)


def test_bad_record_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": 3}\n')
    with pytest.raises(DataError, match=f'{path}:3: "text" is a number'):
        texts_of(path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["missing.jsonl"], "no such file or folder"),
        (["missing*.jsonl"], "no such file or folder"),
        (["notes.md"], "not a data file by its name"),
        (["empty"], "holds no data file"),
        (["a.jsonl", "./a.jsonl"], "given twice"),
    ],
)
def test_paths_that_cannot_be_used(tmp_path: Path, monkeypatch, paths: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").touch()
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=message):
        find_sources("cpt", paths)


def test_plain_text_is_for_documents_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="give it to --cpt"):
        find_sources("sft", [str(tmp_path / "a.txt")])


@pytest.mark.parametrize("line", [b'{"x": NaN}', b'{"x": 123456789012345678901234567890}', b'{"x": "\\ud800"}'])
def test_json_that_python_takes_is_taken(line: bytes) -> None:
    assert "x" in parse_json(line)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"x": ', "invalid_json"),
        (b'{"x": "\xff"}', "not_utf8"),
        (b"[" * 100_000, "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_json_that_nobody_takes(line: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as caught:
        parse_json(line)
    assert caught.value.reason == reason
