"""Conversion on disk: bit-exact round trips, metadata byte for byte, and outputs that are complete or absent."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM, LlamaConfig, Mxfp4Config

from megatron_mixcpt.conversion import convert
from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
from megatron_mixcpt.conversion.hf_metadata import copy_hf_metadata
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape
from megatron_mixcpt.errors import CheckpointError
from tests.unit.conversion import tiny_hf

EXTRAS = {
    "tokenizer.json": '{"version": "1.0"}\r\n',
    "tokenizer_config.json": '{"bos_token":  "<s>"}',
    "chat_template.jinja": "{{ messages }}\n",
    "generation_config.json": '{ "temperature": 0.60 }',
    "additional_chat_templates/rag.jinja": "{{ documents }}",
    "tokenizer.model": "\x00\x01",
}


def save_with_extras(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    tiny_hf.save(name, folder, dtype, shard="60KB")
    for file, content in EXTRAS.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content.encode())
    return folder


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by the safetensors library."""
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same_bits(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


ROUND_TRIPS = [(name, torch.bfloat16) for name in tiny_hf.CONFIGS]
ROUND_TRIPS += [(name, torch.float32) for name in ("llama3_tied", "qwen2", "phi3", "mixtral")]


@pytest.mark.parametrize(("name", "dtype"), ROUND_TRIPS, ids=str)
def test_round_trip_is_bit_exact(name, dtype, tmp_path):
    source = save_with_extras(name, tmp_path / "hf", dtype)
    convert_from_hf(source, tmp_path / "megatron")
    summary = convert_to_hf(tmp_path / "megatron", tmp_path / "out", max_shard_bytes=60_000)
    assert_same_bits(read_all(tmp_path / "out"), read_all(source))
    assert summary.num_tensors == len(read_all(source))
    for file in [*EXTRAS, "config.json"]:
        assert (tmp_path / "out" / file).read_bytes() == (source / file).read_bytes(), file


def test_export_loads_strictly_and_gives_the_same_logits(tmp_path):
    source = save_with_extras("llama3_tied", tmp_path / "hf", torch.float32)
    convert_from_hf(source, tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", max_shard_bytes=60_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    models = []
    for folder in (source, tmp_path / "out"):
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        models.append(model)
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(models[1](tokens).logits, models[0](tokens).logits, rtol=0, atol=0)


def test_dtype_of_the_export(tmp_path):
    source = save_with_extras("qwen2", tmp_path / "hf", torch.float32)
    convert_from_hf(source, tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", dtype=torch.bfloat16)
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in read_all(source).items()}
    assert_same_bits(read_all(tmp_path / "out"), expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert {**config, "dtype": "float32"} == json.loads((source / "config.json").read_text())


def test_reads_only_what_it_writes_once(tmp_path, monkeypatch):
    """Every byte of the checkpoint is read once."""
    source = save_with_extras("qwen2", tmp_path / "hf")
    models = []
    read = convert.read_model_folder
    monkeypatch.setattr(convert, "read_model_folder", lambda folder: models.append(read(folder)) or models[-1])
    summary = convert_from_hf(source, tmp_path / "megatron")
    assert models[0].tensors.bytes_read == summary.num_bytes
    assert summary.num_bytes == sum(tensor.nbytes for tensor in read_all(source).values())


def test_interrupted_export_leaves_nothing(tmp_path, monkeypatch):
    convert_from_hf(save_with_extras("llama", tmp_path / "hf"), tmp_path / "megatron")
    monkeypatch.setattr(convert, "copy_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        convert_to_hf(tmp_path / "megatron", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "megatron"]


def sparse_model(folder: Path, num_layers: int) -> Path:
    """A Llama of 24 MB a layer whose weights are holes in their file."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16}
    config = LlamaConfig(**sizes, vocab_size=1024, num_hidden_layers=num_layers, architectures=["LlamaForCausalLM"])
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json_string())
    shapes = read_config(folder).hf_shapes()
    tensors = {name: TensorShape(shape, torch.bfloat16) for name, shape in shapes.items()}
    SafetensorsWriter(folder, tensors, max_shard_bytes=100_000_000).create()
    return folder


PEAK_OF_BOTH_WAYS = """
import resource, sys
from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
root = sys.argv[1]
convert_from_hf(f"{root}/hf", f"{root}/megatron")
convert_to_hf(f"{root}/megatron", f"{root}/out")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_model(tmp_path, repository):
    """48 MB and 240 MB of weights peak alike: within three times the largest tensor (8 MB) of one another."""
    peaks = []
    for num_layers in (2, 10):
        root = tmp_path / str(num_layers)
        root.mkdir()
        sparse_model(root / "hf", num_layers)
        command = [sys.executable, "-c", PEAK_OF_BOTH_WAYS, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True)
        peaks.append(int(done.stdout.split()[-1]))
        shutil.rmtree(root)
    assert abs(peaks[1] - peaks[0]) < 3 * 2 * 2 * 2048 * 1024, peaks


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_of_the_export(tmp_path):
    source = save_with_extras("llama", tmp_path / "hf")
    megatron, out = tmp_path / "megatron", tmp_path / "out"
    assert "is not a Megatron checkpoint" in refusal(convert_to_hf, source, out)
    convert_from_hf(source, megatron)
    assert "already exists" in refusal(convert_from_hf, source, megatron)
    assert "already exists" in refusal(convert_to_hf, megatron, source)
    assert "has no iter_0000005; it has hf, release" in refusal(convert_to_hf, megatron, out, iteration=5)
    config = json.loads((megatron / "hf" / "config.json").read_text())
    (megatron / "hf" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "has shape (4, 48), config.json implies (3, 48)" in refusal(convert_to_hf, megatron, out)
    (megatron / "hf" / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen2ForCausalLM"]}))
    assert "missing ['decoder.layers.self_attention.linear_qkv.bias']" in refusal(convert_to_hf, megatron, out)
    (megatron / "hf").rename(megatron / "elsewhere")
    assert "give the model folder that it was trained from as --hf-reference" in refusal(convert_to_hf, megatron, out)
    assert not out.exists()


def test_a_checkpoint_without_metadata_exports_with_a_reference(tmp_path):
    source = save_with_extras("llama", tmp_path / "hf")
    convert_from_hf(source, tmp_path / "megatron")
    refused = refusal(convert_to_hf, tmp_path / "megatron", tmp_path / "out", hf_reference=source)
    assert "remove --hf-reference" in refused
    shutil.rmtree(tmp_path / "megatron" / "hf")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", hf_reference=source)
    assert_same_bits(read_all(tmp_path / "out"), read_all(source))
    assert "base_model: hf" in (tmp_path / "out" / "README.md").read_text()


def test_model_card_and_sequence_length_of_a_trained_checkpoint(tmp_path, monkeypatch):
    source = save_with_extras("llama", tmp_path / "hf")
    convert_from_hf(source, tmp_path / "megatron")
    assert "without training" in export_card(tmp_path, "plain")
    (tmp_path / "mixture.json").write_text("{}")
    trained = {"consumed_train_samples": 640, "lr": 2e-5, "seq_length": 128, "teacher": None, "mixture": str(tmp_path)}
    monkeypatch.setattr(MegatronCheckpoint, "iteration", 20)
    monkeypatch.setattr(MegatronCheckpoint, "arguments", lambda self: trained)
    with SummaryWriter(str(tmp_path / "megatron" / "tensorboard")) as log:
        for step, value in ((10, 2.0), (20, 1.5), (30, 1.0)):
            for tag in ("ntp loss", "ntp loss vs samples", "ntp loss validation", "ntp loss validation ppl", "lr"):
                log.add_scalar(tag, value, step)
    card = export_card(tmp_path, "trained")
    lines = ["| learning rate | 2e-05 |", "| training samples seen | 640 |", "| ntp loss at iteration 20 | 1.5 |"]
    lines.append(f"| SHA-256 of the data's manifest | {hashlib.sha256(b'{}').hexdigest()} |")
    for line in lines:
        assert line in card
    assert "base_model: hf" in card and "teacher" not in card and str(tmp_path) not in card
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["max_position_embeddings"] == 128
    assert "vs samples" not in card and "ppl" not in card and "| lr at" not in card


def export_card(root: Path, name: str) -> str:
    convert_to_hf(root / "megatron", root / name)
    return (root / name / "README.md").read_text()


def test_arguments_of_the_run_are_read(tmp_path):
    convert_from_hf(save_with_extras("llama", tmp_path / "hf"), tmp_path / "megatron")
    arguments = MegatronCheckpoint(tmp_path / "megatron").arguments()
    assert (arguments["num_layers"], arguments["tensor_model_parallel_size"]) == (4, 1)


def test_damaged_megatron_checkpoints(tmp_path):
    source = save_with_extras("llama", tmp_path / "hf")
    convert_from_hf(source, tmp_path / "megatron")
    release = tmp_path / "megatron" / "release"
    data = release / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-50_000])
    assert "cannot be read" in refusal(convert_to_hf, tmp_path / "megatron", tmp_path / "out")
    (release / ".metadata").write_bytes(b"")
    assert "the save was interrupted" in refusal(MegatronCheckpoint, tmp_path / "megatron")
    (release / "metadata.json").unlink()
    assert "is not a complete torch_dist checkpoint" in refusal(MegatronCheckpoint, tmp_path / "megatron")


def test_metadata_is_written_once_and_belongs_to_one_model(tmp_path):
    source = save_with_extras("llama", tmp_path / "hf")
    folder = copy_hf_metadata(source, tmp_path / "save")
    origin = json.loads((folder / "source.json").read_text())
    assert (origin["base_model"], origin["vocab_size"], origin["dtype"]) == ("hf", 259, "bfloat16")
    before = (folder / "source.json").stat().st_mtime_ns
    assert copy_hf_metadata(source, tmp_path / "save") == folder
    assert (folder / "source.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "save").iterdir()) == ["hf"]
    (source / "tokenizer.json").write_text("{}")
    assert "belongs to hf, whose config or tokenizer differs" in refusal(copy_hf_metadata, source, tmp_path / "save")


def test_quantized_weights_are_exported_in_full_precision(tmp_path):
    """FP8 in blocks of 16 by 16, in a model whose sizes they divide; embeddings, output layer and norms are not."""
    source = save_with_extras("llama", tmp_path / "hf")
    tensors, expected = {}, {}
    for name, weight in read_all(source).items():
        tensors[name] = expected[name] = weight
        if ".layers." in name and weight.dim() == 2:
            blocks = weight.float().unflatten(1, (-1, 16)).unflatten(0, (-1, 16))
            scales = blocks.abs().amax((1, 3)) / 448
            quantized = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors[name] = quantized.flatten(2, 3).flatten(0, 1)
            tensors[f"{name}_scale_inv"] = scales
            expected[name] = (quantized.float() * scales[:, None, :, None]).bfloat16().flatten(2, 3).flatten(0, 1)
    for path in [*source.glob("*.safetensors"), source / "model.safetensors.index.json"]:
        path.unlink(missing_ok=True)
    save_file(tensors, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    (source / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    summary = convert_from_hf(source, tmp_path / "megatron")
    assert "in full precision; the base model's weights were quantized (fp8)" in str(summary)
    convert_to_hf(tmp_path / "megatron", tmp_path / "out")
    assert_same_bits(read_all(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert "| fp8, read as bfloat16; these are not quantized |" in (tmp_path / "out" / "README.md").read_text()


def test_experts_in_mxfp4_are_what_transformers_makes_of_them(tmp_path):
    """gpt-oss as it is published: each expert's two matrices as blocks of 32 numbers, and biases beside them."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 259}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = GptOssConfig(**sizes, **heads, pad_token_id=0, eos_token_id=1)
    GptOssForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    tensors = read_all(tmp_path / "hf")
    random = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(name).shape
        shape = (experts, rows, columns // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(256, shape, dtype=torch.uint8, generator=random)
        tensors[f"{name}_scales"] = torch.randint(118, 124, shape[:-1], dtype=torch.uint8, generator=random)
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**settings, "quantization_config": quantization}))
    convert_from_hf(tmp_path / "hf", tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out")
    dequantized = {"dtype": torch.bfloat16, "quantization_config": Mxfp4Config(dequantize=True)}
    expected = GptOssForCausalLM.from_pretrained(tmp_path / "hf", **dequantized).state_dict()
    assert_same_bits(read_all(tmp_path / "out"), expected)
