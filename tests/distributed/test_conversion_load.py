"""Engine models filled from Hugging Face folders, against transformers, at real tensor and pipeline layouts.

Tolerance 1e-5: both compute in float32 on logits of size about 1, in another order of sums.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf

TOKENS = torch.arange(2 * 16).view(2, 16) * 7 % 259


def engine_logits(folder: str, tp_size: int, pp_size: int) -> torch.Tensor | None:
    """Logits [b, s, v] of the engine's model filled from ``folder``; None on all but the last pipeline stage."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_mixcpt.conversion.engine_model import build_engine_model, transformer_config
    from megatron_mixcpt.conversion.load import load_hf_weights
    from megatron_mixcpt.conversion.model_folder import read_model_folder

    parallel_state.initialize_model_parallel(tp_size, pp_size)
    model_parallel_cuda_manual_seed(1)
    hf_model = read_model_folder(folder)
    model = build_engine_model(hf_model, transformer_config(hf_model)).eval()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    load_hf_weights(model, hf_model, tp_rank=tp_rank, tp_size=tp_size)
    return forward_through_stages(model)


@torch.no_grad()
def forward_through_stages(model: torch.nn.Module) -> torch.Tensor | None:
    """One forward through the pipeline's stages, one after another; hidden states are [s, b, h]."""
    from megatron.core import parallel_state

    batch, length = TOKENS.shape
    if not model.pre_process:
        received = torch.empty(length, batch, model.config.hidden_size)
        dist.recv(received, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(received)
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    output = model(TOKENS, torch.arange(length).expand(batch, length), mask)
    if model.post_process:
        return output
    dist.send(output, parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def check_logits(folder: str, expected_file: str, tp_size: int, pp_size: int) -> None:
    """On each rank: the last stage's logits equal the expected ones; padding of the vocabulary is left out."""
    logits = engine_logits(folder, tp_size, pp_size)
    if logits is not None:
        expected_logits = torch.load(expected_file)
        assert expected_logits.abs().max() > 0.5
        torch.testing.assert_close(logits[..., : expected_logits.shape[-1]], expected_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(tiny_hf.CONFIGS))
@pytest.mark.parametrize(("tp_size", "pp_size"), [(1, 1), (2, 1), (1, 2)], ids=["single", "TP2", "PP2"])
def test_logits_equal_transformers(name: str, tp_size: int, pp_size: int, tmp_path: Path) -> None:
    model = tiny_hf.build(name)
    model.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    with torch.no_grad():
        torch.save(model(TOKENS).logits, tmp_path / "expected.pt")
    files = (str(tmp_path / "hf"), str(tmp_path / "expected.pt"))
    run_distributed(check_logits, tp_size * pp_size, *files, tp_size, pp_size, cpu_emulation=True)
