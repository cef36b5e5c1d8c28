"""Student and teacher through the real training entry at every layout, against transformers and a dense loss.

The reference shares nothing with the package but the order of the samples. Float32 everywhere: losses differ by the
order of sums alone, which gives 1e-6 here in one iteration; the tolerances are those promised to users.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, SEQ_LENGTH, flags, make_world, train

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
TP3 = ["--tensor-model-parallel-size", "3"]
PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS = {
    "TP2+SP": (2, TP2_SP),
    "PP2": (2, PP2),
    "TP2xPP2": (4, [*TP2_SP[:2], *PP2]),
    "PP2 interleaved": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "TP3": (3, TP3),
    "DP2 distributed optimizer": (2, ["--use-distributed-optimizer"]),
}
KEYS = {"loss", "ntp loss", "lssd loss", "swapped fraction", "tokens per second"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def single(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """Curves on one rank, by architecture and further flags."""

    @cache
    def run(architecture: str, *more: str, iterations: int = 20) -> dict[str, list[float]]:
        return train(1, [*flags(world, architecture, iterations=iterations), *more], tmp_path_factory.mktemp("log"))

    return run


def first_batch(world: Path) -> Tensor:
    """The tokens [b, s + 1] of the first global batch, as the samples' order has them."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers import MegatronTokenizer

    from megatron_mixcpt.data.blend import build_mixture_datasets
    from megatron_mixcpt.data.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture import plan_mixture

    manifest = MixtureManifest.load(world / "mixture")
    tokenizer = MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=385, eod_id=0)
    config = GPTDatasetConfig(
        random_seed=1234,
        sequence_length=SEQ_LENGTH,
        split="100,0,0",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH, epochs=1)
    dataset, _ = build_mixture_datasets(manifest, plan, config, num_valid_sequences=0)
    samples = [dataset[i] for i in range(GLOBAL_BATCH_SIZE)]
    return torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in samples])


def expected_first_iteration(world: Path, architecture: str, tokens: Tensor) -> dict[str, float]:
    """Losses of the first batch and the gradient's norm, dense, written down from the paper (Eq. 1, 4, 6 and 7)."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(world / name, dtype=torch.float32)
        for name in (architecture, f"{architecture}-teacher")
    )
    with torch.no_grad():
        original = teacher(tokens[:, :-1]).logits.double()
    label, top = tokens[:, 1:, None], original.argmax(-1, keepdim=True)
    label_value, top_value = original.gather(-1, label), original.gather(-1, top)
    swapped = original.scatter(-1, top, label_value).scatter(-1, label, top_value)
    log_p, log_q = student(tokens[:, :-1]).logits.double().log_softmax(-1), swapped.log_softmax(-1)
    ntp = -log_p.gather(-1, label).mean()
    lssd = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    (0.8 * ntp + 0.2 * lssd).backward()
    return {
        "ntp loss": ntp.item(),
        "lssd loss": lssd.item(),
        "swapped fraction": (label != top).double().mean().item(),
        "grad-norm": torch.stack([parameter.grad.norm() for parameter in student.parameters()]).norm().item(),
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_first_iteration_is_that_of_transformers(architecture: str, world: Path, single) -> None:
    curves = single(architecture)
    for key, expected in expected_first_iteration(world, architecture, first_batch(world)).items():
        assert curves[key][0] == pytest.approx(expected, rel=2e-4), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree(layout: str, world: Path, single, tmp_path: Path) -> None:
    world_size, more = LAYOUTS[layout]
    # Each layout with one architecture; tied embeddings matter where there are two pipeline stages.
    architecture = "qwen2" if layout in ("TP3", "TP2+SP") else "llama"
    curves = train(world_size, [*flags(world, architecture, iterations=20), *more], tmp_path)
    expected = single(architecture)
    for key in KEYS - {"tokens per second"}:
        assert curves[key] == pytest.approx(expected[key], rel=1e-3), key
    assert curves["ntp loss"][-1] < curves["ntp loss"][0] - 0.1  # the documents are random: little to learn


def test_reported_keys(single) -> None:
    engine = {"learning-rate", "batch-size", "grad-norm", "loss-scale"}
    reported = {key for key in single("llama") if not key.endswith(" vs samples")}
    assert KEYS <= reported
    assert reported - KEYS - engine == set()
