"""Tensors that are not trained: from the base model's folder to the export, byte for byte, and from no other folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mistral3ForConditionalGeneration

from megatron_mixcpt.conversion import carried
from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
from megatron_mixcpt.conversion.hf_model_folder import read_config, read_model_folder
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.conversion.tensor_files.reader import read_json
from megatron_mixcpt.errors import CheckpointError, ConfigError
from tests.distributed.tiny_models import build_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral Small in bfloat16, its vision tower in float16 with a buffer of integers beside it."""
    folder = tmp_path_factory.mktemp("towers") / "mistral3"
    build_model("mistral3", seed=0).to(torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith("vision_tower.")]:
        tensors[name] = tensors[name].half()
    tensors |= {"vision_tower.ids": torch.arange(5), "vision_tower.scale": torch.tensor(2.0, dtype=torch.float64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Path:
    convert_from_hf(source, source.parent / "megatron")
    return source.parent / "megatron"


def test_export_holds_the_base_models_tensors(
    source: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carried, "CHUNK_BYTES", 100)  # several parts of a tensor
    convert_to_hf(checkpoint, tmp_path / "out", hf_reference=source)
    expected, exported = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert exported.keys() == expected.keys()
    for name, tensor in exported.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name
    config = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "out")]
    assert config[0] == config[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| the base model's, not trained | 17 tensors: multi_modal_projector, vision_tower |" in card


def test_none_of_them_is_in_the_checkpoint(source: Path, checkpoint: Path) -> None:
    in_checkpoint = MegatronCheckpoint(checkpoint, None).model_tensors()
    others = [name for name in in_checkpoint if not name.startswith(("decoder.", "embedding.", "output_layer."))]
    assert not others and len(read_model_folder(source).carried) == 17


def test_the_folder_must_be_named_and_the_right_one(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"17 tensors .*tools/convert_to_hf.py and that model's folder as --hf-r"):
        convert_to_hf(checkpoint, tmp_path / "out")
    other = tmp_path / "other"
    build_model("mistral3", seed=0).save_pretrained(other)
    with pytest.raises(CheckpointError, match="is not mistral3, from which"):
        convert_to_hf(checkpoint, tmp_path / "out", hf_reference=other)
    assert not (tmp_path / "out").exists()


def test_another_training_of_the_same_tower_is_refused(source: Path, checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["vision_tower.ln_pre.weight"] = tensors["vision_tower.ln_pre.weight"] + 1
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not mistral3, from which"):
        convert_to_hf(checkpoint, tmp_path / "out", hf_reference=tmp_path)


@pytest.mark.parametrize("separate", [True, False])
def test_where_config_says_nothing_the_files_say_whether_embeddings_are_tied(
    source: Path, tmp_path: Path, separate: bool
) -> None:
    config, tensors = read_json(source / "config.json"), load_file(source / "model.safetensors")
    folder = tmp_path / "hf"
    del config["tie_word_embeddings"]
    if not separate:
        tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = Mistral3ForConditionalGeneration.from_pretrained(folder)
    expected = model.lm_head.weight is model.get_input_embeddings().weight
    assert read_model_folder(folder).tied == expected == (not separate)

    convert_from_hf(folder, tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", hf_reference=folder)
    again = Mistral3ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_the_language_models_dtype_is_written_where_it_stands(source: Path, tmp_path: Path) -> None:
    config = read_json(source / "config.json")
    config["text_config"]["torch_dtype"] = "bfloat16"
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    convert_from_hf(folder, tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", dtype=torch.float32, hf_reference=folder)
    exported = read_json(tmp_path / "out" / "config.json")
    assert exported["text_config"]["torch_dtype"] == exported["dtype"] == "float32"


def test_tensors_of_the_language_model_are_never_carried(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.q_norm.weight"] = torch.ones(4, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected language_model.model.layers.0.self_attn.q_norm.weight"):
        read_model_folder(tmp_path)


def test_errors_name_the_key_within_text_config(source: Path, tmp_path: Path) -> None:
    def refusal(**changes: object) -> str:
        config = json.loads((source / "config.json").read_text())
        config["text_config"] = {**config["text_config"], **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError) as caught:
            read_config(tmp_path)
        return str(caught.value)

    assert "text_config.hidden_act 'gelu' cannot be trained" in refusal(hidden_act="gelu")
    assert "text_config.vocab_size" in refusal(vocab_size=None)
    assert "text_config.model_type 'llama' is not supported" in refusal(model_type="llama")


@pytest.mark.parametrize(
    ("kind", "further"), [("deepseek-v3", "model.layers.4.eh_proj.weight"), ("qwen3-next", "mtp.fc.weight")]
)
def test_layers_that_predict_further_tokens_travel(kind: str, further: str, tmp_path: Path) -> None:
    build_model(kind, seed=0).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors") | {further: torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert_from_hf(tmp_path / "hf", tmp_path / "megatron")
    convert_to_hf(tmp_path / "megatron", tmp_path / "out", hf_reference=tmp_path / "hf")
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[further], tensors[further])
    stray = tensors | {"model.layers.5.eh_proj.weight": torch.ones(3, dtype=torch.bfloat16)}
    save_file(stray, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="unexpected model.layers.5.eh_proj.weight"):
        read_model_folder(tmp_path / "hf")
