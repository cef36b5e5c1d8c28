"""A checkpoint's adapters are found complete, or what differs is named; and it is not taken for a model."""

from pathlib import Path

import pytest
import torch

from megatron_mixcpt.conversion.adapters.checkpoint import holds_adapters, open_adapters, refuse_adapters
from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf
from tests.unit.conversion.adapters.lora_checkpoint import Adapters, random_adapters, save_checkpoint

TARGETS = ("linear_qkv", "linear_fc2")
FIRST = "decoder.layers.0.mlp.linear_fc2"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf.save("llama", tmp_path_factory.mktemp("adapters") / "base")


def test_adapters_are_read_whole(base: Path, tmp_path: Path) -> None:
    written = random_adapters(base, TARGETS)
    adapters = open_adapters(MegatronCheckpoint(save_checkpoint(base, tmp_path, written, TARGETS)), read_config(base))
    assert (adapters.settings.scale, adapters.dtype) == (5.0 / 3, torch.float32)
    assert adapters.rules.keys() == written.keys()
    for module, pair in written.items():
        assert all(torch.equal(*both) for both in zip(adapters.read(module), pair, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lacks one", rf"missing adapters\.{FIRST}\.lora_a, adapters\.{FIRST}\.lora_b; unexpected none"),
        ("has more", r"missing none; unexpected adapters\.elsewhere\.lora_a"),
        ("other rank", rf"adapters\.{FIRST}\.lora_a has shape \(2, 80\), --lora-rank 3 and .* imply \(3, 80\)"),
    ],
)
def test_others_than_those_of_the_run_are_named(change: str, message: str, base: Path, tmp_path: Path) -> None:
    adapters: Adapters = random_adapters(base, TARGETS)
    a, b = adapters[FIRST]
    changed = {
        "lacks one": {module: pair for module, pair in adapters.items() if module != FIRST},
        "has more": {**adapters, "elsewhere": (a, b)},
        "other rank": {**adapters, FIRST: (a[:2].clone(), b[:, :2].clone())},
    }
    checkpoint = MegatronCheckpoint(save_checkpoint(base, tmp_path, changed[change], TARGETS))
    with pytest.raises(CheckpointError, match=message):
        open_adapters(checkpoint, read_config(base))


def test_it_is_not_taken_for_a_model(base: Path, tmp_path: Path) -> None:
    adapters = random_adapters(base, TARGETS)
    checkpoint = MegatronCheckpoint(save_checkpoint(base, tmp_path / "adapters", adapters, TARGETS, lora_rank=None))
    with pytest.raises(CheckpointError, match=r"holds adapters, not a model: export it first with tools/convert_to_hf"):
        refuse_adapters(checkpoint)
    with pytest.raises(CheckpointError, match="its arguments have no lora_rank"):
        open_adapters(checkpoint, read_config(base))
    convert_from_hf(base, tmp_path / "whole")
    assert not holds_adapters(whole := MegatronCheckpoint(tmp_path / "whole"))
    refuse_adapters(whole)
