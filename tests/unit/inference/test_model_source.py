"""Which model a run takes, and at which layouts; the weights are read in ``tests/distributed/test_evaluate.py``."""

from pathlib import Path

import pytest

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.inference.model_source import ModelSource
from tests.unit.conversion import tiny_hf
from tests.unit.conversion.adapters.lora_checkpoint import random_adapters, save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf`` (6 heads, 2 groups, 4 layers; 259 tokens) with a tokenizer, and ``megatron`` made from it."""
    root = tmp_path_factory.mktemp("source")
    tiny_hf.save_tokenizer(tiny_hf.save("llama", root / "hf"))
    convert_from_hf(root / "hf", root / "megatron")
    return root


def test_a_folder_of_either_kind(folder: Path) -> None:
    hf = ModelSource.open(hf_model=folder / "hf")
    megatron = ModelSource.open(load=folder / "megatron")
    assert (hf.is_megatron, hf.weights, hf.iteration) == (False, folder / "hf", None)
    assert (megatron.is_megatron, megatron.weights, megatron.iteration) == (True, folder / "megatron" / "release", None)
    assert hf.plan.engine_arguments == megatron.plan.engine_arguments
    assert len(hf.tokenizer()) == len(megatron.tokenizer()) == 259


def test_the_iteration_of_a_training_run(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "iter_0000030").symlink_to(folder / "megatron" / "release")
    (tmp_path / "hf").symlink_to(folder / "megatron" / "hf")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("30")
    assert ModelSource.open(load=tmp_path).iteration == 30
    with pytest.raises(CheckpointError, match="has no iter_0000040; it has hf, iter_0000030"):
        ModelSource.open(load=tmp_path, iteration=40)
    (tmp_path / "hf").unlink()
    with pytest.raises(CheckpointError, match="has no hf/ folder .* export it with tools/convert_to_hf.py"):
        ModelSource.open(load=tmp_path)


def test_adapters_are_not_a_model(folder: Path, tmp_path: Path) -> None:
    targets = ("linear_proj",)
    save_checkpoint(folder / "hf", tmp_path, random_adapters(folder / "hf", targets), targets)
    with pytest.raises(CheckpointError, match="holds adapters, not a model: export it first .* give --hf-model DIR"):
        ModelSource.open(load=tmp_path)


def test_exactly_one_model(folder: Path) -> None:
    for options in ({}, {"hf_model": folder / "hf", "load": folder / "megatron"}):
        with pytest.raises(ConfigError, match="give the model with either --hf-model"):
            ModelSource.open(**options)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (2, 4)])
def test_a_layout_that_divides_the_model(folder: Path, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "24")
    ModelSource.open(hf_model=folder / "hf").check_layout(*sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 1), "--tensor-model-parallel-size 4 does not divide the model's 6 attention heads: choose 2"),
        ((3, 1), "--tensor-model-parallel-size 3 does not divide the model's 80 MLP columns: choose 2"),
        ((1, 3), "--pipeline-model-parallel-size 3 does not divide the model's 4 layers: choose 2 or 4"),
        ((0, 1), "--tensor-model-parallel-size 0 must be greater than 0"),
        ((2, 1), "1 rank cannot be divided into complete copies of the model of 2 .*: start 2"),
    ],
)
def test_a_layout_that_does_not(folder: Path, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSource.open(hf_model=folder / "hf").check_layout(*sizes)


def test_other_weights_are_described_otherwise(folder: Path, tmp_path: Path) -> None:
    source = ModelSource.open(hf_model=folder / "hf")
    assert source.described() == ModelSource.open(hf_model=folder / "hf").described()
    other = tiny_hf.save("llama", tmp_path / "hf", seed=1)
    assert source.described() != ModelSource.open(hf_model=other).described()


def test_a_tokenizer_of_another_model(folder: Path, tmp_path: Path) -> None:
    for file in (folder / "hf").iterdir():
        (tmp_path / file.name).symlink_to(file)
    source = ModelSource.open(hf_model=tmp_path)
    source.plan.engine_arguments["vocab_size"] = 200
    with pytest.raises(CheckpointError, match="the tokenizer has ids up to 258, the model 200 embeddings"):
        source.tokenizer()
