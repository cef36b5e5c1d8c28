"""``tools/verify_conversion.py`` as a command: it passes what is the same and names the layer that is not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.convert import convert_from_hf
from tests.unit.conversion import tiny_hf


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hf`` and the Megatron checkpoint ``megatron`` made from it."""
    root = tmp_path_factory.mktemp("verify")
    tiny_hf.save_tokenizer(tiny_hf.save("qwen3_tied_bias", root / "hf"))
    convert_from_hf(root / "hf", root / "megatron")
    return root


def verify(repository: Path, folders: Path, launcher: list[str], *flags: str) -> subprocess.CompletedProcess:
    paths = ["--hf-model", str(folders / "hf"), "--load", str(folders / "megatron"), "--num-tokens", "48"]
    command = [*launcher, str(repository / "tools" / "verify_conversion.py"), *paths, *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository, timeout=240)


def test_the_same_model_over_two_ranks(repository, folders):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = verify(repository, folders, launcher, "--tensor-model-parallel-size", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "62 tensors bit for bit, 0 in another dtype" in done.stdout
    assert "no layer differs" in done.stdout and "the same model" in done.stdout


def test_a_difference_is_found_and_placed(repository, folders, tmp_path):
    """One weight of layer 2 changed in the folder after its conversion."""
    (tmp_path / "hf").mkdir()
    for file in (folders / "hf").iterdir():
        (tmp_path / "hf" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.2.mlp.down_proj.weight"] += 0.1 * torch.eye(48, 80)
    save_file(tensors, weights, {"format": "pt"})
    (tmp_path / "megatron").symlink_to(folders / "megatron")
    done = verify(repository, tmp_path, [sys.executable])
    assert done.returncode == 1, done.stderr[-2000:]
    assert "1 DIFFERENT: model.layers.2.mlp.down_proj.weight" in done.stdout
    assert "FIRST DIFFERENCE in layer 2 (from 0)" in done.stdout and "NOT the same model" in done.stdout
