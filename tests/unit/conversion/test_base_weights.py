"""The digest of a base model's weights: that of the tensors, whatever the files."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.base_weights import weights_digest
from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
from tests.unit.conversion import tiny_hf


def digest_of(folder: Path) -> str:
    return weights_digest(read_model_folder(folder))


def test_digest_is_over_name_dtype_shape_and_first_bytes(tmp_path: Path) -> None:
    folder = tiny_hf.save("llama3_tied", tmp_path / "hf", torch.bfloat16)
    expected = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        data = bytes(tensor.view(torch.uint8).flatten().numpy())[: min(4096, -(-tensor.numel() // 2))]
        expected.update(f"{name} torch.bfloat16 {tuple(tensor.shape)}\n".encode() + data)
    assert digest_of(folder) == expected.hexdigest()


def test_shards_and_a_stored_copy_of_tied_weights_do_not_matter(tmp_path: Path) -> None:
    whole = tiny_hf.save("llama3_tied", tmp_path / "whole")
    shards = tiny_hf.save("llama3_tied", tmp_path / "shards", shard="60KB")
    assert len(list(shards.glob("*.safetensors"))) > 1 and digest_of(shards) == digest_of(whole)
    tensors = load_file(whole / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    assert digest_of(whole) == digest_of(shards)


def test_another_training_and_another_dtype_differ(tmp_path: Path) -> None:
    digests = {
        digest_of(tiny_hf.save("llama3_tied", tmp_path / f"{seed}-{dtype}", dtype, seed=seed))
        for seed, dtype in ((0, torch.float32), (1, torch.float32), (0, torch.bfloat16))
    }
    assert len(digests) == 3
