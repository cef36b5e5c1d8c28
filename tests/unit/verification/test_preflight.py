"""The check of a model folder: each fault that it must find, planted in an otherwise healthy model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.verification.preflight import Preflight, check_hf_model
from tests.unit.conversion import tiny_hf


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_hf.save("llama", tmp_path_factory.mktemp("healthy") / "m")
    tiny_hf.save_tokenizer(folder)
    return folder


def check(healthy: Path, tmp_path: Path, **changed: torch.Tensor) -> Preflight:
    """The check of the healthy model with some tensors replaced (keys with ``__`` for dots)."""
    for file in healthy.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {name.replace("__", "."): tensor for name, tensor in changed.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return check_hf_model(read_model_folder(tmp_path))


def test_a_healthy_model_passes(healthy, tmp_path):
    assert check(healthy, tmp_path) == Preflight(num_tensors=39)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(healthy, tmp_path, value):
    weight = torch.ones(48, 80)
    weight[3, 5] = value
    found = check(healthy, tmp_path, model__layers__1__mlp__down_proj__weight=weight)
    assert found.problems == ["model.layers.1.mlp.down_proj.weight has 1 values that are NaN or infinite"]


def test_embedding_rows_near_zero(healthy, tmp_path):
    embedding = torch.randn(259, 48)
    embedding[[7, 200]] *= 1e-3
    found = check(healthy, tmp_path, model__embed_tokens__weight=embedding)
    assert not found.problems
    assert "model.embed_tokens.weight has 2 rows near zero (ids 7, 200)" in found.warnings[0]


def test_tokenizers_that_do_not_fit(healthy, tmp_path):
    model = read_model_folder(healthy)
    model.engine_arguments["vocab_size"] = 258
    assert check_hf_model(model).problems == ["the tokenizer has ids up to 258, the embedding only 258 rows"]
    (tmp_path / "a").mkdir()
    assert "rows beyond" not in str(check(healthy, tmp_path / "a"))


def test_no_tokenizer(tmp_path):
    found = check_hf_model(read_model_folder(tiny_hf.save("llama", tmp_path / "m")))
    assert found.problems[0].startswith("no tokenizer could be read from")
