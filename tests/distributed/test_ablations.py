"""What else can be trained: no teacher, a share of the samples, the distance to the original weights, validation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_mixcpt.distillation.distilled_samples import is_distilled
from megatron_mixcpt.testing import run_distributed
from tests.distributed.dense_iteration import expected_first_iteration
from tests.distributed.tiny_run import GLOBAL_BATCH_SIZE, flags, make_world, train

TP2_SP = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
PP2_INTERLEAVED = ["--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2"]
COEFFICIENT = 1e-3
SEED = 1234  # the engine's default


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("more", [["--distillation", "none"], ["--alpha", "1"]], ids=["none", "alpha 1"])
def test_no_teacher_is_even_built(more: list[str], world: Path) -> None:
    run_distributed(count_forwards, 1, [*flags(world, iterations=1), *more], 0, cpu_emulation=True)


def test_only_chosen_samples_run_the_teacher(world: Path) -> None:
    chosen = is_distilled(torch.arange(3 * GLOBAL_BATCH_SIZE), fraction=0.5, seed=SEED)
    assert 0 < chosen.sum() < len(chosen)
    argv = [*flags(world, iterations=3), "--distillation-fraction", "0.5"]
    run_distributed(count_forwards, 1, argv, int(chosen.sum()), cpu_emulation=True)


def count_forwards(argv: list[str], expected_teacher: int) -> None:
    """Train, and count the engine's forward passes with and without gradients."""
    from megatron.core.models.gpt import GPTModel

    from megatron_mixcpt.training.pretraining.cpt import main

    counts = {True: 0, False: 0}
    forward = GPTModel.forward

    def counted(model, *args, **kwargs):
        counts[torch.is_grad_enabled()] += 1
        # Dropout and the like are the student's alone.
        assert model.training == torch.is_grad_enabled()
        return forward(model, *args, **kwargs)

    GPTModel.forward = counted
    main.__wrapped__(argv)
    assert counts[False] == expected_teacher
    assert counts[True] > 0


def test_kd_leaves_the_teacher_as_it_is(world: Path, tmp_path: Path) -> None:
    curves = train(1, [*flags(world, iterations=1), "--distillation", "kd"], tmp_path)
    assert curves["swapped fraction"] == [0.0]
    assert curves["loss"][0] == pytest.approx(0.8 * curves["ntp loss"][0] + 0.2 * curves["lssd loss"][0], rel=1e-6)


def test_teacher_in_host_memory_is_the_same_teacher(world: Path, tmp_path: Path) -> None:
    argv = [*flags(world, iterations=2), *PP2_INTERLEAVED]
    expected = train(2, argv, tmp_path / "device")
    curves = train(2, [*argv, "--teacher-offload", "cpu"], tmp_path / "host")
    for key in ("loss", "lssd loss", "grad-norm"):
        assert curves[key] == expected[key], key


@pytest.mark.parametrize(("divergence", "masks"), [("reverse", False), ("forward", True)])
def test_divergence_temperature_and_mask_are_those_of_a_dense_iteration(
    divergence: str, masks: bool, world: Path, tmp_path: Path
) -> None:
    argv = [*flags(world, iterations=1), "--divergence", divergence, "--distillation-temperature", "2"]
    argv += ["--log-teacher-entropy", *(["--eod-mask-loss"] if masks else [])]
    curves = train(2, [*argv, *TP2_SP], tmp_path)
    options = {"forward_divergence": divergence == "forward", "masks_document_starts": masks}
    expected = expected_first_iteration(world, "llama", temperature=2.0, **options)
    for key, value in expected.items():
        # Float32 sums in another order: losses agree within 1e-6, the norm, over all parameters, within 2e-4.
        assert curves[key][0] == pytest.approx(value, rel=2e-4), key


@pytest.fixture(scope="module")
def l2_single(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return train(1, l2_flags(world), tmp_path_factory.mktemp("log"))


def l2_flags(world: Path) -> list[str]:
    return [*flags(world, iterations=4), "--distillation", "l2", "--l2-coefficient", str(COEFFICIENT)]


def test_l2_is_the_distance_of_the_weights(l2_single, world: Path) -> None:
    student, anchor = (load_file(world / name / "model.safetensors") for name in ("llama", "llama-teacher"))
    distance = sum((student[name].double() - anchor[name].double()).square().sum().item() for name in student)
    penalty = l2_single["loss"][0] - l2_single["ntp loss"][0]
    # Both losses are float32 numbers of about 6: their difference carries an error of 1e-6.
    assert penalty == pytest.approx(COEFFICIENT * distance, rel=1e-5)
    assert l2_single["loss"][-1] - l2_single["ntp loss"][-1] < penalty, "the weights are pulled towards the anchor"


@pytest.mark.parametrize("more", [TP2_SP, PP2_INTERLEAVED], ids=["TP2+SP", "PP2 interleaved"])
def test_l2_counts_each_parameter_once(more: list[str], l2_single, world: Path, tmp_path: Path) -> None:
    curves = train(2, [*l2_flags(world), *more], tmp_path)
    for key in ("loss", "ntp loss", "grad-norm"):
        assert curves[key] == pytest.approx(l2_single[key], rel=1e-4), key


def test_validation_reports_the_same_figures(world: Path, tmp_path: Path) -> None:
    held_out = ["--split", "80,20,0", "--eval-interval", "2", "--eval-iters", "1"]
    argv = [*flags(world, iterations=2), *held_out, "--document-masking", *PP2_INTERLEAVED]
    curves = train(2, argv, tmp_path)
    for key in ("loss", "ntp loss", "lssd loss", "swapped fraction"):
        assert f"{key} validation" in curves
    assert curves["loss validation"][0] == pytest.approx(curves["loss"][-1], rel=0.2)
