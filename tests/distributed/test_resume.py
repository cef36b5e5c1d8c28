"""Checkpoints: an interrupted run ends where an uninterrupted one does, and the teacher is in none of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from megatron_mixcpt.conversion.convert import convert_to_hf
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import flags, make_world, train

TP2 = ["--tensor-model-parallel-size", "2", "--use-distributed-optimizer"]
PP2 = ["--pipeline-model-parallel-size", "2", "--use-distributed-optimizer"]
# Half of the samples: a resumed run must choose the same ones.
HALF = ["--distillation-fraction", "0.5"]
KEYS = ("loss", "ntp loss", "lssd loss", "swapped fraction", "grad-norm")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[float]]]:
    """Checkpoints at iterations 10 and 20 of a run at TP2, and its curves."""
    root = tmp_path_factory.mktemp("uninterrupted")
    argv = [*flags(world, iterations=20), *TP2, *HALF, "--save", str(root / "save"), "--save-interval", "10"]
    return root / "save", train(2, argv, root / "log")


def test_resumed_run_is_the_same_bit_for_bit(uninterrupted, world: Path, tmp_path: Path) -> None:
    checkpoint, curves = uninterrupted
    argv = [*flags(world, iterations=20), *TP2, *HALF, "--load", str(checkpoint), "--ckpt-step", "10"]
    resumed = train(2, [*argv, "--save", str(tmp_path / "save")], tmp_path / "log")
    for key in KEYS:
        assert resumed[key] == curves[key][10:], key
    expected = exported(checkpoint, tmp_path)
    base = load_file(world / "llama" / "model.safetensors")
    for name, tensor in exported(tmp_path / "save", tmp_path).items():
        assert torch.equal(tensor, expected[name]), name
        assert not torch.equal(tensor, base[name]), f"{name} was not trained"


def test_resharded_run_agrees(uninterrupted, world: Path, tmp_path: Path) -> None:
    checkpoint, curves = uninterrupted
    argv = [*flags(world, iterations=20), *PP2, *HALF, "--load", str(checkpoint), "--ckpt-step", "10"]
    resharded = train(2, argv, tmp_path)
    for key in KEYS:
        assert resharded[key] == pytest.approx(curves[key][10:], rel=1e-3), key


def test_checkpoint_holds_the_student_once(uninterrupted, world: Path) -> None:
    checkpoint, _ = uninterrupted
    metadata = FileSystemReader(checkpoint / "iter_0000020").read_metadata().state_dict_metadata
    sizes = {name: entry.size.numel() for name, entry in metadata.items() if hasattr(entry, "size")}
    num_parameters = sum(parameter.numel() for parameter in build_model("llama", 0).parameters())
    padding = 48  # one row of the embedding: 385 tokens at TP2
    weights = sum(size for name, size in sizes.items() if not name.startswith("optimizer."))
    assert weights - num_parameters in (0, padding)
    assert not [name for name in metadata if "teacher" in name]


def exported(checkpoint: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint's weights as a Hugging Face folder has them."""
    target = folder / f"hf-{abs(hash(checkpoint))}"
    if not target.exists():
        convert_to_hf(checkpoint, target)
    return load_file(target / "model.safetensors")
