"""The .bin/.idx pair, byte for byte what the engine's own builder writes, and damage that is noticed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_mixcpt.data.mixture.indexed import check_dataset, read_lengths, token_type_for, write_index
from megatron_mixcpt.errors import DataError


def write_pair(prefix: Path, documents: list[np.ndarray], token_type: np.dtype, chunk: int = 3) -> None:
    np.concatenate(documents).astype(token_type).tofile(f"{prefix}.bin")
    lengths = np.array([len(document) for document in documents], np.int32)
    write_index(Path(f"{prefix}.idx"), lengths, token_type, chunk)


@pytest.mark.parametrize("vocab_size", [100, 65499, 65500, 150_000])
@pytest.mark.parametrize("num_documents", [1, 3, 10])
def test_equals_the_engines_builder(tmp_path: Path, vocab_size: int, num_documents: int) -> None:
    random = np.random.default_rng(num_documents)
    documents = [random.integers(0, vocab_size, random.integers(1, 40)) for _ in range(num_documents)]
    token_type = token_type_for(vocab_size)
    assert token_type == np.dtype(DType.optimal_dtype(vocab_size))
    builder = IndexedDatasetBuilder(str(tmp_path / "engine.bin"), dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        builder.add_document(torch.from_numpy(document), [len(document)])
    builder.finalize(str(tmp_path / "engine.idx"))
    write_pair(tmp_path / "ours", documents, token_type)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"engine.{suffix}").read_bytes()
    assert check_dataset(tmp_path / "ours") == (num_documents, sum(map(len, documents)))
    dataset = IndexedDataset(str(tmp_path / "ours"))
    assert all(np.array_equal(dataset[index], document) for index, document in enumerate(documents))


def test_offsets_beyond_four_gigabytes(tmp_path: Path) -> None:
    lengths = np.full(3, 2**30, np.int32)
    write_index(tmp_path / "a.idx", lengths, token_type_for(100_000), chunk=2)
    assert read_lengths(tmp_path / "a.idx").tolist() == lengths.tolist()
    starts = np.fromfile(tmp_path / "a.idx", "<i8", 3, offset=34 + 12)
    assert starts.tolist() == [0, 2**32, 2**33]


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size_is_noticed(tmp_path: Path, suffix: str, change: int) -> None:
    write_pair(tmp_path / "a", [np.arange(5), np.arange(7)], token_type_for(100))
    path = tmp_path / f"a.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    with pytest.raises(DataError, match=f"{path}: (has )?{len(content) + change} bytes"):
        check_dataset(tmp_path / "a")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_lengths(tmp_path / "missing.idx")
    (tmp_path / "text.idx").write_text("not an index, though long enough to be one")
    with pytest.raises(DataError, match="not an index"):
        read_lengths(tmp_path / "text.idx")
