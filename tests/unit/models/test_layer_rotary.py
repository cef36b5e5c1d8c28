"""Layers with different rotary embeddings, on two pipeline stages, against transformers with each layer's table."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf

LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN: dict[str, Any] = {
    **{"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0},
    **{"original_max_position_embeddings": 64},
}
LAYERS = (LINEAR, YARN, YARN, LINEAR)
TOKENS = torch.arange(2 * 64).view(2, 64) * 7 % 259


def config_with(rope: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(**tiny_hf.SIZES, tie_word_embeddings=False, rope_parameters=dict(rope))


def test_logits(tmp_path: Path) -> None:
    model = tiny_hf.build_from(config_with(LINEAR))
    model.save_pretrained(tmp_path)
    for layer, rope in zip(model.model.layers, LAYERS, strict=True):
        table = LlamaRotaryEmbedding(config_with(rope))(torch.zeros(1), torch.arange(64)[None])
        layer.register_forward_pre_hook(
            lambda _, args, named, table=table: (args, {**named, "position_embeddings": table}), with_kwargs=True
        )
    with torch.no_grad():
        torch.save(model(TOKENS).logits, tmp_path / "expected.pt")
    run_distributed(check_logits, 2, str(tmp_path), cpu_emulation=True)


def check_logits(folder: str) -> None:
    from dataclasses import replace

    from megatron_mixcpt.conversion.hf_model_folder import read_model_folder
    from megatron_mixcpt.inference.engine_model import (
        build_engine_model,
        forward_through_stages,
        load_on_this_rank,
        transformer_config,
    )
    from megatron_mixcpt.inference.parallel_groups import start_ranks

    start_ranks(1, 2)
    plan = read_model_folder(folder)
    rope = plan.options.rope
    assert rope is not None
    ropes = tuple(replace(rope, parameters=parameters) for parameters in LAYERS)
    plan = replace(plan, options=replace(plan.options, layer_ropes=ropes))
    model = build_engine_model(plan, transformer_config(plan)).eval()
    load_on_this_rank(model, plan)
    logits = forward_through_stages(model, TOKENS)
    if logits is not None:
        # Float32 on values of a few units, in another order of sums.
        torch.testing.assert_close(logits[..., :259], torch.load(Path(folder) / "expected.pt"), atol=2e-5, rtol=0)
