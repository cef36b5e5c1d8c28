"""PEFT itself loads what is exported, and computes what the merged model computes.

Logits are compared within 1e-5 of the largest: float32 rounds x W + s (x A) B and x (W + s A B) differently.
"""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from megatron_mixcpt.conversion.adapters.peft_export import export_adapter
from megatron_mixcpt.conversion.adapters.peft_folder import read_peft_folder
from megatron_mixcpt.conversion.convert import convert_from_hf, convert_to_hf
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import CheckpointError
from tests.distributed.tiny_models import build_model, load_model
from tests.unit.conversion import tiny_hf
from tests.unit.conversion.adapters.lora_checkpoint import ALPHA, RANK, random_adapters, save_checkpoint

ATTENTION, MLP = ("linear_qkv", "linear_proj"), ("linear_fc1", "linear_fc2")
LATENT = ("linear_q_up_proj", "linear_kv_up_proj", "linear_proj")
KINDS = {
    "llama": ATTENTION + MLP,  # tied
    "qwen2": ATTENTION + MLP,  # untied, with biases
    "qwen3": ("linear_qkv",),
    "phi3": ATTENTION + MLP,  # fused
    "mixtral": ATTENTION,
    "deepseek-v3": LATENT,
    "gemma2": ATTENTION + MLP,
    "mistral3": ATTENTION + MLP,  # beside a vision tower
}


def targets_of(folder: Path) -> list[str]:
    return json.loads((folder / "adapter_config.json").read_text())["target_modules"]


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_what_the_merged_model_does(kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    build_model(kind, seed=0).save_pretrained(base)
    targets = KINDS[kind]
    adapters = random_adapters(base, targets)
    checkpoint = save_checkpoint(base, tmp_path / "megatron", adapters, targets)
    export_adapter(checkpoint, tmp_path / "adapter")
    convert_to_hf(checkpoint, tmp_path / "merged", hf_reference=base)

    adapted, merged = (
        peft.PeftModel.from_pretrained(load_model(base), tmp_path / "adapter"),
        load_model(tmp_path / "merged"),
    )
    expected, without = logits_of(adapted), logits_of(load_model(base))
    largest = expected.abs().max()
    assert (expected - without).abs().max() > 0.01 * largest  # the adapters matter
    torch.testing.assert_close(logits_of(merged), expected, rtol=0, atol=float(1e-5 * largest))

    written = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    in_memory = {name for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert {name.replace(".weight", ".default.weight") for name in written} == in_memory
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)

    again = read_peft_folder(tmp_path / "adapter", read_config(base))
    assert (again.rank, again.alpha, set(again.target_modules.split(","))) == (RANK, ALPHA, set(targets))
    for module, expected_factors in adapters.items():
        for factor, exported in zip(again.weights(f"{module}.weight", 0, 1), expected_factors, strict=True):
            assert torch.equal(factor, exported), module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_hf.save("llama3_tied", tmp_path_factory.mktemp("base") / "tiny")
    tiny_hf.save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def checkpoint(base: Path) -> Path:
    targets = ("linear_qkv", "linear_fc2")
    adapters = random_adapters(base, targets)
    return save_checkpoint(base, base.parent / "megatron", adapters, targets, lora_dropout=0.1, lora_use_rslora=True)


def test_the_folder_is_as_pefts(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    summary = export_adapter(checkpoint, tmp_path / "out", dtype=torch.bfloat16)
    assert summary.num_tensors == 4 * (3 + 1) * 2
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    config = peft.PeftConfig.from_pretrained(tmp_path / "out")
    assert isinstance(config, peft.LoraConfig)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (RANK, ALPHA, 0.1, True)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "down_proj"}
    assert (config.base_model_name_or_path, config.task_type, config.bias) == ("tiny", "CAUSAL_LM", "none")
    present = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} < present and "config.json" not in present
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft\nbase_model: tiny\n" in card
    for line in ("| LoRA rank | 3 |", "| LoRA alpha | 5.0 |", "linear_qkv, linear_fc2 |"):
        assert line in card
    export_adapter(checkpoint, tmp_path / "named", hf_reference=base)
    assert peft.PeftConfig.from_pretrained(tmp_path / "named").base_model_name_or_path == str(base)


def test_what_is_no_adapter_or_not_of_this_base_is_refused(base: Path, checkpoint: Path, tmp_path: Path) -> None:
    convert_from_hf(base, tmp_path / "whole")
    with pytest.raises(CheckpointError, match="holds a whole model, not adapters: remove --adapter"):
        export_adapter(tmp_path / "whole", tmp_path / "out")
    other = tiny_hf.save("llama3_tied", tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"--hf-reference .*other is not tiny, beside which the adapters of"):
        export_adapter(checkpoint, tmp_path / "out", hf_reference=other)
    assert not (tmp_path / "out").exists()


def test_what_peft_cannot_say_is_refused(base: Path, tmp_path: Path) -> None:
    build_model("deepseek-v3", seed=0).save_pretrained(tmp_path / "moe")
    adapters = random_adapters(tmp_path / "moe", MLP)
    experts = save_checkpoint(tmp_path / "moe", tmp_path / "experts", adapters, MLP)
    with pytest.raises(CheckpointError, match=r"decoder.layers.0.mlp.linear_fc1, whose name PEFT takes for that of a"):
        export_adapter(experts, tmp_path / "out")
    lengthened = save_checkpoint(base, tmp_path / "long", random_adapters(base, ATTENTION), ATTENTION)
    source = lengthened / "hf" / "source.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"rope_scaling": "yarn factor=4"}))
    with pytest.raises(CheckpointError, match="trained with --rope-scaling yarn factor=4, which a PEFT folder cannot"):
        export_adapter(lengthened, tmp_path / "out")
