"""Log-probabilities of a mixture of experts, by which scoring and evaluation measure, against transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_mixcpt.conversion.convert import convert_from_hf
from megatron_mixcpt.testing import run_distributed
from tests.unit.conversion import tiny_hf

# As (TP, EP), and which kind of folder the weights are from.
LAYOUTS = {"TP2": ((2, 1), "hf"), "EP2": ((1, 2), "hf"), "EP2, Megatron": ((1, 2), "megatron")}
LENGTHS = (40, 7, 23, 12, 31)


def sequences() -> list[np.ndarray]:
    """Of different lengths, so that each is a batch alone: three for one rank, and two for the other."""
    random = np.random.default_rng(0)
    return [random.integers(0, 259, length).astype(np.int32) for length in LENGTHS]


def test_log_probs_are_those_of_transformers(tmp_path: Path) -> None:
    expected = {name: save_and_run(name, tmp_path / name) for name in ("mixtral", "qwen3_moe")}
    run_distributed(check_models, 2, str(tmp_path), expected, cpu_emulation=True, timeout_s=200)


def save_and_run(name: str, folder: Path) -> list[float]:
    """Fill ``folder`` with both kinds of weights; the sequences' log-probabilities by transformers, in nats."""
    model = tiny_hf.build(name)
    model.save_pretrained(folder / "hf")
    tiny_hf.save_tokenizer(folder / "hf")
    convert_from_hf(folder / "hf", folder / "megatron")
    sums = []
    for tokens in sequences():
        ids = torch.from_numpy(tokens).long()
        with torch.no_grad():
            log_probs = model(ids[None]).logits[0].double().log_softmax(-1)
        sums.append(log_probs[:-1].gather(1, ids[1:, None]).sum().item())
    return sums


def check_models(root: str, expected: dict[str, list[float]]) -> None:
    for name, sums in expected.items():
        check_layouts(Path(root, name), sums)


def check_layouts(folder: Path, expected: list[float]) -> None:
    from megatron_mixcpt.inference.batches import ScoredSequence
    from megatron_mixcpt.inference.model_source import ModelSource
    from megatron_mixcpt.inference.runner import ForwardRunner

    scored = [ScoredSequence(tokens, len(tokens) - 1) for tokens in sequences()]
    for (tp_size, ep_size), kind in LAYOUTS.values():
        place = {"hf_model": folder / "hf"} if kind == "hf" else {"load": folder / "megatron"}
        source = ModelSource.open(**place)
        runner = ForwardRunner.start(source, tp_size=tp_size, pp_size=1, ep_size=ep_size, dtype=torch.float32)
        assert runner.dp_size == 2 // tp_size
        # float32 against float64's sums of up to 39 tokens.
        assert runner.sequence_log_probs(scored, batch_tokens=40).tolist() == pytest.approx(expected, abs=2e-4)
        runner.close()
