"""Held-out samples: each kind by itself, every sequence once, from before the first step."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.distributed.dense_iteration import engine_dataset_config
from tests.distributed.tiny_run import SEQ_LENGTH, flags, make_world, train

SPLIT = "80,20,0"
PP2_INTERLEAVED = ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"]
DP2 = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def expected_losses(world: Path) -> dict[str, float]:
    """The base model's mean next-token loss on each kind's held-out sequences, by transformers."""
    from megatron_mixcpt.data.blend import build_validation_sets
    from megatron_mixcpt.data.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture import plan_mixture

    manifest = MixtureManifest.load(world / "mixture")
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH, split=SPLIT)
    model = AutoModelForCausalLM.from_pretrained(world / "llama", dtype=torch.float32)
    losses = {}
    for kind, dataset in build_validation_sets(manifest, plan, engine_dataset_config(SPLIT)).items():
        samples = [dataset[index] for index in range(len(dataset))]
        tokens, labels = (torch.stack([sample[name] for sample in samples]) for name in ("tokens", "labels"))
        with torch.no_grad():
            logits = model(tokens).logits.double()
        losses[kind] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()
    return losses


@pytest.mark.parametrize("layout", [PP2_INTERLEAVED, DP2], ids=["PP2 interleaved", "DP2 overlapped"])
def test_each_kind_is_measured_once_from_the_start(layout: list[str], world: Path, tmp_path: Path) -> None:
    argv = [*flags(world, iterations=2), "--split", SPLIT, "--eval-interval", "1"]
    curves = train(2, [*argv, *layout], tmp_path)
    losses = expected_losses(world)
    assert len(losses) == 3
    for kind, loss in losses.items():
        measured = curves[f"ntp loss validation-{kind}"]
        # Before the first step, after both, and once more at the end of training; float32 sums in another order.
        assert len(measured) == 4 and measured[0] == pytest.approx(loss, rel=2e-5), kind
        assert measured[1] != measured[0] and measured[3] == measured[2]
        assert len(curves[f"lssd loss validation-{kind}"]) == 4
    assert len(curves["loss"]) == 2
