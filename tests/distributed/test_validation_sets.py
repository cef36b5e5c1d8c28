"""Complete validation sets: each alone, every sequence once, from before the first step; student against teacher."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed.dense_iteration import engine_dataset_config
from tests.distributed.tiny_run import SEQ_LENGTH, flags, make_world, train
from tests.unit.losses.dense_reference import expected_mixcpt_loss

SPLIT = "80,20,0"
PP2_INTERLEAVED = ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"]
TP2_IN_CHUNKS = ["--tensor-model-parallel-size", "2", "--sequence-parallel", "--loss-chunk-tokens", "24"]
TP2_IN_CHUNKS += ["--distillation-temperature", "2.0"]  # of the divergence alone
DP2 = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
DP2 += ["--distillation-fraction", "0.3"]  # of training alone


TEXT = "A held-out text that nobody trains on, long enough for a few sequences. " * 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_world(tmp_path_factory.mktemp("world"))
    (root / "general.jsonl").write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
    return root


def held_out_samples(world: Path) -> dict[str, Tensor]:
    """Each kind's held-out sequences [n, s + 1], and all of the kind sft as ``whole``."""
    from megatron_mixcpt.data.datasets.mixture_datasets import build_validation_sets, build_whole_set
    from megatron_mixcpt.data.mixture.manifest import MixtureManifest
    from megatron_mixcpt.data.mixture.plan import plan_mixture

    manifest = MixtureManifest.load(world / "mixture")
    plan = plan_mixture(manifest, sequence_length=SEQ_LENGTH, split=SPLIT)
    sets = build_validation_sets(manifest, plan, engine_dataset_config(SPLIT))
    sets["whole"] = build_whole_set(manifest, "sft", engine_dataset_config(SPLIT))
    samples = {name: [part[index] for index in range(len(part))] for name, part in sets.items()}
    return {
        name: torch.stack([torch.cat([sample["tokens"], sample["labels"][-1:]]) for sample in part])
        for name, part in samples.items()
    }


def text_samples(world: Path) -> Tensor:
    """The text's sequences [n, s + 1], cut by hand: each begins with the last label of the one before."""
    tokenizer = AutoTokenizer.from_pretrained(world / "llama")
    tokens = torch.tensor([*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id])
    assert len(tokens) > 2 * SEQ_LENGTH
    return tokens.unfold(0, SEQ_LENGTH + 1, SEQ_LENGTH)


def expected_losses(world: Path, model_name: str) -> dict[str, float]:
    """A model's mean next-token loss on each validation set, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(world / model_name, dtype=torch.float32)
    losses = {}
    for name, sequences in (held_out_samples(world) | {"general": text_samples(world)}).items():
        with torch.no_grad():
            logits = model(sequences[:, :-1]).logits.double()
        losses[name] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten()).item()
    return losses


def expected_divergences(world: Path, temperature: float) -> dict[str, float]:
    """The mean LSSD of every token of each validation set, by transformers."""
    models = [AutoModelForCausalLM.from_pretrained(world / name) for name in ("llama", "llama-teacher")]
    divergences = {}
    for name, sequences in (held_out_samples(world) | {"general": text_samples(world)}).items():
        with torch.no_grad():
            student, teacher = (model(sequences[:, :-1]).logits.flatten(0, 1) for model in models)
        expected = expected_mixcpt_loss(student, teacher, sequences[:, 1:].flatten(), 0.8, temperature=temperature)
        divergences[name] = expected.lssd.mean().item()
    return divergences


def validation_flags(world: Path) -> list[str]:
    return ["--validation", f"general={world / 'general.jsonl'}", "--validation", f"whole={world / 'mixture' / 'sft'}"]


@pytest.mark.parametrize(
    "layout", [PP2_INTERLEAVED, TP2_IN_CHUNKS, DP2], ids=["PP2 interleaved", "TP2 in chunks", "DP2 overlapped"]
)
def test_each_set_is_measured_once_from_the_start(layout: list[str], world: Path, tmp_path: Path) -> None:
    argv = [*flags(world, iterations=2), "--split", SPLIT, "--eval-interval", "1", *validation_flags(world)]
    curves = train(2, [*argv, *layout], tmp_path)
    student, teacher = expected_losses(world, "llama"), expected_losses(world, "llama-teacher")
    divergences = expected_divergences(world, temperature=2.0 if layout is TP2_IN_CHUNKS else 1.0)
    assert list(student) == ["cpt", "sft", "dpo", "whole", "general"]
    for name, loss in student.items():
        measured = curves[f"ntp loss validation-{name}"]
        # Before the first step, after both, and once more at the end of training; float32 sums in another order.
        assert len(measured) == 4 and measured[0] == pytest.approx(loss, rel=2e-5), name
        assert measured[1] != measured[0] and measured[3] == measured[2]
        divergence = curves[f"lssd loss validation-{name}"]
        # Every sample's, whatever share of them is distilled in training; float32 sums in another order.
        assert len(divergence) == 4 and divergence[0] == pytest.approx(divergences[name], rel=2e-5), name
        constant = curves[f"teacher ntp loss validation-{name}"]
        assert constant == [constant[0]] * 4 and constant[0] == pytest.approx(teacher[name], rel=2e-5), name
    assert len(curves["loss"]) == 2


def test_without_a_teacher_the_line_is_where_training_started(world: Path, tmp_path: Path) -> None:
    """Also in a resumed run, when the student is no longer what it started from."""
    save = tmp_path / "checkpoints"
    argv = [*flags(world, iterations=None), "--eval-interval", "1", *validation_flags(world)]
    argv += ["--save", str(save), "--save-interval", "1", "--distillation", "none", "--override-opt_param-scheduler"]
    first = train(1, [*argv, "--train-iters", "1"], tmp_path / "first")
    second = train(1, [*argv, "--train-iters", "2", "--load", str(save)], tmp_path / "second")
    started = expected_losses(world, "llama")
    for name in ("general", "whole"):
        constant = first[f"teacher ntp loss validation-{name}"] + second[f"teacher ntp loss validation-{name}"]
        assert constant == [constant[0]] * 5 and constant[0] == pytest.approx(started[name], rel=2e-5)
        assert second[f"ntp loss validation-{name}"][0] != pytest.approx(started[name], rel=1e-3)
