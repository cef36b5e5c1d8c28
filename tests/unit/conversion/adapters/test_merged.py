"""Merged exports are those of the whole model whose weights have the adapters' product added in the engine's order."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.adapters.merged import find_base
from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf, places_in, read_whole
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.megatron_writer import TensorSource, write_release
from megatron_mixcpt.errors import CheckpointError
from tests.distributed.tiny_models import build_model
from tests.unit.conversion import tiny_hf
from tests.unit.conversion.adapters.lora_checkpoint import ALPHA, RANK, Adapters, random_adapters, save_checkpoint

TARGETS = {
    "phi3": ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    "deepseek-v3": ("linear_q_up_proj", "linear_kv_up_proj", "linear_fc1", "linear_fc2"),
    "gpt-oss": ("linear_qkv", "linear_proj"),
}


def export_of_the_sum(base: Path, folder: Path, adapters: Adapters) -> Path:
    """Add scale * B A to the weights of a checkpoint of the whole model, and export that, in float32."""
    convert_from_hf(base, folder / "whole")
    model, checkpoint = read_model_folder(base), MegatronCheckpoint(folder / "whole")
    sources = []
    for name, rule in model.rules().items():
        weight = read_whole(checkpoint, rule, model).float()
        if factors := adapters.get(name.removesuffix(".weight")):
            weight = (weight.double() + ALPHA / RANK * (factors[1].double() @ factors[0].double())).float()
        ((place, shape),) = places_in(rule, model).items()
        sources.append(TensorSource(place, shape, torch.float32, partial(_fill, weight)))
    write_release(folder / "sum", sources, model.engine_arguments)
    copy_hf_metadata(base, folder / "sum", model)
    convert_to_hf(folder / "sum", folder / "expected", dtype=torch.float32)
    return folder / "expected"


def _fill(tensor: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(tensor.reshape(target.shape))


def quantize(folder: Path) -> None:
    """Let the attention and MLP weights of a saved model be FP8, in blocks of 8 by 8 with a scale each."""
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name, weight in tensors.items() if ".layers." in name and weight.dim() == 2]:
        rows, columns = tensors[name].shape
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.rand(rows // 8, columns // 8) + 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [8, 8], "activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", [*TARGETS, "phi3 in FP8"])
def test_merged_is_the_export_of_the_sum(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    kind, is_quantized = kind.removesuffix(" in FP8"), kind.endswith("FP8")
    build_model(kind, seed=0).to(torch.bfloat16).save_pretrained(base)
    if is_quantized:
        quantize(base)
    adapters = random_adapters(base, TARGETS[kind])
    checkpoint = save_checkpoint(base, tmp_path / "megatron", adapters, TARGETS[kind])
    convert_to_hf(checkpoint, tmp_path / "merged", hf_reference=base, dtype=torch.float32)
    expected = load_file(export_of_the_sum(base, tmp_path, adapters) / "model.safetensors")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6, msg=name)  # float32, other orders

    convert_to_hf(checkpoint, tmp_path / "rounded", hf_reference=base)
    for name, tensor in load_file(tmp_path / "rounded" / "model.safetensors").items():
        assert torch.equal(tensor, merged[name].to(torch.bfloat16)), f"{name} is rounded more than once"


def test_the_base_model_must_be_named_and_the_right_one(tmp_path: Path) -> None:
    base, targets = tiny_hf.save("llama", tmp_path / "base"), ("linear_proj",)
    checkpoint = save_checkpoint(base, tmp_path / "megatron", random_adapters(base, targets), targets)
    with pytest.raises(CheckpointError, match="holds adapters of base: give that model's folder as --hf-reference"):
        convert_to_hf(checkpoint, tmp_path / "out")
    other = tiny_hf.save("llama", tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"--hf-reference .*/other is not base, beside which the adapters of"):
        convert_to_hf(checkpoint, tmp_path / "out", hf_reference=other)
    with pytest.raises(CheckpointError, match=r"no hf/source.json with the digest of the weights that they belong to"):
        find_base({}, base, checkpoint)
    convert_to_hf(checkpoint, tmp_path / "out", hf_reference=base)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: base" in card and "| LoRA rank | 3 |" in card
