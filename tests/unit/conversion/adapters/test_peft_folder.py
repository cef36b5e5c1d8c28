"""Folders that PEFT saved become adapters of the engine's modules: the same function, at any tensor-parallel size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_mixcpt.conversion.adapters.peft_folder import PeftAdapters, read_peft_folder
from megatron_mixcpt.conversion.hf_model_folder import read_config
from megatron_mixcpt.errors import CheckpointError, ConfigError
from tests.distributed.tiny_models import build_model, load_model
from tests.unit.conversion import tiny_hf

RANK, ALPHA = 3, 5


def save_peft(base: Path, folder: Path, **settings: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder saved by PEFT with random A and B, and what it adds to each weight of the model."""
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(load_model(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    layers = ((name, module) for name, module in model.named_modules() if hasattr(module, "get_delta_weight"))
    added = {name.removeprefix("base_model.model."): module.get_delta_weight("default") for name, module in layers}
    return folder, {name: delta.detach() for name, delta in added.items()}


def scale_of(adapters: PeftAdapters) -> float:
    return adapters.alpha / (adapters.rank**0.5 if adapters.use_rslora else adapters.rank)


def part_of(name: str, added: dict[str, torch.Tensor], shape: torch.Size, layer: str) -> torch.Tensor:
    return added.get(layer + name, torch.zeros(shape))


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "target_modules": ["q_proj", "k_proj", "up_proj"]}], ids=str
)
@pytest.mark.parametrize("tp_size", [1, 2])
def test_what_pefts_default_adds_is_what_ours_add(settings: dict, tp_size: int, tmp_path: Path) -> None:
    """Llama's joined layers by hand: [a group's queries, its key, its value], and each rank's gate above its up."""
    base = tiny_hf.save("llama", tmp_path / "base")
    folder, added = save_peft(base, tmp_path / "peft", **settings)
    adapters = read_peft_folder(folder, read_config(base))
    assert adapters.rank == 2 * RANK and scale_of(adapters) == pytest.approx(scale_of_folder(folder))
    hidden, inner, heads, groups = 48, 80, 6, 2
    head = hidden // heads
    for layer in range(4):
        attention, mlp = (f"model.layers.{layer}.{part}." for part in ("self_attn", "mlp"))
        query, key, value = (
            part_of(name, added, torch.Size((rows * head, hidden)), attention)
            for name, rows in (("q_proj", heads), ("k_proj", groups), ("v_proj", groups))
        )
        joined = [tensor.view(groups, -1, head, hidden) for tensor in (query, key, value)]
        qkv = torch.cat(joined, dim=1).flatten(0, 2)
        gate, up = (part_of(name, added, torch.Size((inner, hidden)), mlp) for name in ("gate_proj", "up_proj"))
        for rank in range(tp_size):
            fc1 = torch.cat([gate.chunk(tp_size)[rank], up.chunk(tp_size)[rank]])
            for name, expected in (("self_attention.linear_qkv", qkv.chunk(tp_size)[rank]), ("mlp.linear_fc1", fc1)):
                a, b = adapters.weights(f"decoder.layers.{layer}.{name}.weight", rank, tp_size)
                torch.testing.assert_close(scale_of(adapters) * (b @ a), expected, rtol=1e-5, atol=1e-6)


def scale_of_folder(folder: Path) -> float:
    config = peft.PeftConfig.from_pretrained(folder)
    assert isinstance(config, peft.LoraConfig)
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def test_row_parallel_layers_and_fused_ones_keep_their_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    build_model("phi3", seed=0).save_pretrained(base)
    folder, added = save_peft(base, tmp_path / "peft", target_modules=["qkv_proj", "down_proj"])
    adapters = read_peft_folder(folder, read_config(base))
    assert (adapters.rank, adapters.alpha, adapters.target_modules) == (RANK, ALPHA, "linear_qkv,linear_fc2")
    assert capsys.readouterr().out == ""
    for layer in range(4):
        parts = [adapters.weights(f"decoder.layers.{layer}.mlp.linear_fc2.weight", rank, 2) for rank in (0, 1)]
        delta = torch.cat([b @ a for a, b in parts], dim=1) * ALPHA / RANK
        torch.testing.assert_close(delta, added[f"model.layers.{layer}.mlp.down_proj"], rtol=1e-5, atol=1e-6)


def test_growth_is_said_and_layers_without_an_adapter_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_hf.save("llama", tmp_path / "base")
    folder, _ = save_peft(base, tmp_path / "peft", layers_to_transform=[2])
    read_peft_folder(folder, read_config(base))
    adapters = read_peft_folder(folder, read_config(base))  # a run reads it twice
    line = capsys.readouterr().out
    assert line.startswith(f"{folder}: rank 3 becomes 6 (alpha 5 becomes 10): layers that are one here")
    assert line.count("\n") == 1
    for layer in range(4):
        a, b = adapters.weights(f"decoder.layers.{layer}.self_attention.linear_qkv.weight", 0, 1)
        assert bool(a.any()) == bool(b.any()) == (layer == 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and a folder of PEFT's for it."""
    root = tmp_path_factory.mktemp("peft")
    base = tiny_hf.save("mixtral", root / "base")
    return base, save_peft(base, root / "peft", target_modules=["q_proj", "v_proj"])[0]


def copied(folder: Path, target: Path, change: Callable[[dict], object] = lambda _: None, **settings: object) -> Path:
    """A copy with changed tensors and settings."""
    target.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, target / "adapter_model.safetensors")
    values = json.loads((folder / "adapter_config.json").read_text()) | settings
    (target / "adapter_config.json").write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora True is not supported: only plain LoRA adapters are"),
        ({"lora_bias": True}, "lora_bias True is not supported"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save \['lm_head'\] is not supported"),
        ({"something_new": 1}, "something_new 1 is not supported"),
        ({"bias": "all"}, "bias 'all' trains biases of the base model, which stays frozen here"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
        ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base model's weights"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern .* all modules must have one rank"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern .* all modules must have one rank and one alpha"),
        ({"r": 0}, "r 0 is not a rank"),
        ({"lora_alpha": "x"}, "lora_alpha 'x' must be a number"),
        ({"lora_dropout": 1.0}, "lora_dropout 1.0 must be at least 0 and below 1"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_expressed(
    settings: dict, message: str, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    base, folder = saved
    with pytest.raises(ConfigError, match=message):
        read_peft_folder(copied(folder, tmp_path / "changed", **settings), read_config(base))


QUERY = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


def renamed(name: str) -> Callable[[dict], object]:
    return lambda tensors: tensors.update({name: tensors.pop(QUERY + "A.weight")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("base_model.model.model.embed_tokens.lora_embedding_A"), "is not the A or B of a linear layer"),
        (renamed("base_model.model.model.layers.0.mlp.experts.0.w1.lora_A.weight"), "belongs to routed experts"),
        (renamed("base_model.model.lm_head.lora_A.weight"), "lm_head cannot have an adapter here"),
        (
            renamed("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"),
            "no module model.layers.9.self_attn",
        ),
        (lambda tensors: tensors.pop(QUERY + "B.weight"), "model.layers.0.self_attn.q_proj lacks its lora_B"),
        (lambda tensors: tensors.clear(), "holds no adapter"),
        (
            lambda tensors: tensors.update({QUERY + "A.weight": torch.ones(3, 7)}),
            r"has shape \(3, 7\), r 3 and .* imply",
        ),
        (lambda tensors: tensors.update({QUERY + "A.weight": torch.ones(3, 48).long()}), "int64: save the adapters in"),
    ],
)
def test_tensors_of_other_modules(change: Callable, message: str, saved: tuple[Path, Path], tmp_path: Path) -> None:
    base, folder = saved
    with pytest.raises((ConfigError, CheckpointError), match=message):
        read_peft_folder(copied(folder, tmp_path / "changed", change), read_config(base))


def test_missing_files(saved: tuple[Path, Path], tmp_path: Path) -> None:
    base, folder = saved
    with pytest.raises(CheckpointError, match="has no adapter_config.json: give a folder that PEFT saved"):
        read_peft_folder(base, read_config(base))
    changed = copied(folder, tmp_path / "changed")
    (changed / "adapter_model.safetensors").rename(changed / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"no adapter_model.safetensors \(its .bin file is a pickle"):
        read_peft_folder(changed, read_config(base))
