"""Folders as other programs leave them: bookkeeping is passed over, splits for testing are named and left out."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from megatron_mixcpt.data.reading.held_out_names import is_held_out
from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.reading.sources import find_files, find_sources
from megatron_mixcpt.errors import DataError


def names(kind: str, *paths: Path | str, **options) -> tuple[list[str], list[str]]:
    found = find_files(kind, [str(path) for path in paths], **options)
    return [source.path.name for source in found.sources], [path.name for path in found.held_out]


def snapshot(folder: Path) -> Path:
    """A data set's repository as it is downloaded."""
    (folder / "data").mkdir(parents=True)
    for name in ("dataset_infos.json", "README.md", "data/train.jsonl", "data/test.jsonl", "data/dev-00000.jsonl.gz"):
        (folder / name).write_text("{}")
    return folder


def test_a_saved_dataset_dict_is_read_by_its_splits(tmp_path: Path) -> None:
    splits = {name: Dataset.from_dict({"text": [name]}) for name in ("train", "test", "extra")}
    DatasetDict(splits).save_to_disk(str(tmp_path / "dd"))
    (tmp_path / "dd" / "old.jsonl").write_text("no split lists it")
    assert [record.text for record in read_records("cpt", [str(tmp_path / "dd")])] == ["train", "extra"]
    assert [record.text for record in read_records("cpt", [str(tmp_path / "dd" / "test")])] == ["test"]
    (tmp_path / "dd" / "dataset_dict.json").write_text('{"splits": [3]}')
    with pytest.raises(DataError, match="dataset_dict.json: not as the datasets library writes it"):
        find_sources("cpt", [str(tmp_path / "dd")])


def test_held_out_splits_of_a_snapshot_are_named_and_left_out(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "snap")
    assert names("cpt", folder) == (["train.jsonl"], ["dev-00000.jsonl.gz", "test.jsonl"])
    line = find_files("cpt", [str(folder)]).describe_held_out("--cpt")
    assert line.startswith(f"--cpt: 2 file(s) left out, held out by their names: {folder}/data/dev-00000.jsonl.gz, ")
    everything = ["dev-00000.jsonl.gz", "test.jsonl", "train.jsonl"]
    assert names("cpt", folder, include_held_out=True) == (everything, [])
    assert names("perplexity", folder) == (everything, [])
    assert names("cpt", folder, folder / "data" / "test.jsonl") == (["train.jsonl", "test.jsonl"], everything[:1])
    assert names("cpt", folder / "data" / "t*.jsonl") == (["train.jsonl"], ["test.jsonl"])
    assert names("cpt", folder / "data" / "test*") == (["test.jsonl"], [])
    with pytest.raises(DataError, match="no such file or folder"):  # nothing but bookkeeping
        names("cpt", folder / "*.json")


def test_a_folder_of_nothing_but_tests_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a_test.jsonl").touch()
    with pytest.raises(DataError, match="all its files are held out .*--include-held-out-splits"):
        find_sources("sft", [str(tmp_path)])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gsm8k_test.jsonl", True),
        ("validation-00000-of-00001.parquet", True),
        ("test_prefs-00000-of-00001.parquet", True),
        ("Test/part1.jsonl", True),
        ("valid.jsonl", True),
        ("eval2.jsonl", True),
        ("held_out.jsonl", True),
        ("train/dev-notes.jsonl", False),
        ("latest.jsonl", False),
        ("devices.jsonl", False),
        ("invalid.jsonl", False),
        ("train-00000-of-00001.parquet", False),
    ],
)
def test_names_of_held_out_files(path: str, expected: bool) -> None:
    assert is_held_out(Path(path).parts) is expected
