"""Every rotary embedding of transformers in the engine's model: tables, and logits on two tensor-parallel ranks.

Logits are compared within 2e-5: both sides compute in float32 on values of a few units, in another order of sums.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config, PreTrainedConfig, SmolLM3Config

from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf

LENGTHS = (24, 64, 65, 100)  # below, at and above the limits of 64 tokens
ORIGINAL = {"original_max_position_embeddings": 64}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]}
HALF = {"short_factor": [1.0, 1.2], "long_factor": [1.5, 3.5], "partial_rotary_factor": 0.5}
ROPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "fractional-theta": (LlamaConfig, {"rope_type": "default", "rope_theta": 12345.678}),
    "linear": (LlamaConfig, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (LlamaConfig, {"rope_type": "dynamic", "factor": 2.0}),
    "yarn": (LlamaConfig, {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}),
    "yarn-mscale": (
        LlamaConfig,
        {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": False, **ORIGINAL},
    ),
    "yarn-attention-factor": (LlamaConfig, {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.7, **ORIGINAL}),
    "yarn-some-layers": (SmolLM3Config, {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}),
    "llama3": (
        LlamaConfig,
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0, **ORIGINAL},
    ),
    "longrope": (LlamaConfig, {"rope_type": "longrope", "factor": 4.0, **FACTORS, **ORIGINAL}),
    "phi3-longrope": (Phi3Config, {"rope_type": "longrope", **HALF, **ORIGINAL}),
    "phi3-partial": (Phi3Config, {"rope_type": "default", "partial_rotary_factor": 0.75}),
    "proportional": (LlamaConfig, {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0}),
}
TOKENS = torch.arange(2 * max(LENGTHS)).view(2, -1) * 7 % 259


def config_of(name: str) -> PreTrainedConfig:
    """A tiny model with this rotary embedding; of 64 positions where they matter, else of 256."""
    kind, rope = ROPES[name]
    positions = 64 if name == "dynamic" else 256
    ids = {} if kind is LlamaConfig else tiny_hf.SMALL_IDS
    original = ORIGINAL if kind is Phi3Config else {}
    sizes = {**tiny_hf.SIZES, "max_position_embeddings": positions, "tie_word_embeddings": False}
    return kind(**sizes, **ids, **original, rope_parameters={"rope_theta": 10000.0, **rope})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each embedding, and transformers' logits at each length beside the weights."""
    root = tmp_path_factory.mktemp("ropes")
    for name in ROPES:
        model = tiny_hf.build_from(config_of(name))
        model.save_pretrained(root / name)
        with torch.no_grad():
            torch.save({n: model(TOKENS[:, :n]).logits for n in LENGTHS}, root / name / "expected.pt")
    return root


def test_logits(models: Path) -> None:
    run_distributed(check_logits, 2, str(models), cpu_emulation=True)


def check_logits(models: str) -> None:
    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import (
        build_engine_model,
        forward_through_stages,
        load_on_this_rank,
        transformer_config,
    )
    from megatron_mixcpt.inference.parallel_groups import start_ranks

    start_ranks(2, 1)
    wrong = []
    for name in ROPES:
        folder = read_model_folder(Path(models) / name)
        model = build_engine_model(folder, transformer_config(folder)).eval()
        load_on_this_rank(model, folder)
        assert not any("inv_freq" in key for key in model.state_dict())
        expected = torch.load(folder.folder / "expected.pt")
        for length in LENGTHS:
            logits = forward_through_stages(model, TOKENS[:, :length])
            assert logits is not None
            difference = (logits[..., :259] - expected[length]).abs().max().item()
            if not difference < 2e-5:
                wrong.append(f"{name} at {length} tokens: {difference:.1e}")
        if name in ("dynamic", "longrope"):  # as scoring pads: the length of what is read counts
            padded = torch.cat([TOKENS[:, :62], torch.zeros(2, 4, dtype=torch.int64)], 1)
            logits = forward_through_stages(model, padded, sequence_length=62)
            assert logits is not None
            torch.testing.assert_close(logits[:, :24, :259], expected[24], atol=2e-5, rtol=0)
    assert not wrong, "; ".join(wrong)
