"""Trainings with Transformer Engine's layers, whose arithmetic the stand-ins do, beside the same with ours.

The modules, their parameters, the gradient buffers, the distributed optimizer, Transformer Engine's Adam with its state
and checkpoints are the real ones. Each layout of pretraining is compared with one rank of our layers, which other tests
compare with transformers; SFT and DPO are compared with dense loops of transformers and torch's AdamW. Float32 both, in
another order of sums, which Adam amplifies where gradients are near zero.
"""

from functools import cache
from pathlib import Path

import pytest

from tests.distributed import test_alignment_training
from tests.distributed.tiny_run import flags, make_world
from tests.transformer_engine.runs import LOCAL, train

NUM_ITERATIONS = 3
TOLERANCE = {"rel": 1e-3, "abs": 1e-4}
TP2_SP = ("--tensor-model-parallel-size", "2", "--sequence-parallel")
PP2 = ("--pipeline-model-parallel-size", "2")
SHARDED = ("--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather")
RECOMPUTED = ("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1")
NOT_FUSED = ("--no-rope-fusion", "--no-bias-swiglu-fusion", "--no-bias-dropout-fusion", "--no-masked-softmax-fusion")

# Name -> ranks, and the layout's flags. llama has tied embeddings, qwen2 has not and biases beside its weights.
CPT = {
    "one rank": ("llama", 1, ()),
    "chunks, offload, recomputed": (
        "llama",
        1,
        ("--loss-chunk-tokens", "16", "--teacher-offload", "cpu", *RECOMPUTED, *NOT_FUSED),
    ),
    "TP2+SP": ("qwen2", 2, TP2_SP),
    "TP2": ("llama", 2, TP2_SP[:2]),
    "PP2, sharded, overlapping": ("llama", 2, (*PP2, *SHARDED)),
    "PP2 interleaved": ("qwen2", 2, (*PP2, "--num-virtual-stages-per-pipeline-rank", "2")),
    "DP2, sharded, overlapping, chunks": ("qwen2", 2, (*SHARDED, "--loss-chunk-tokens", "16")),
    "CP2": ("llama", 2, ("--context-parallel-size", "2")),
    "CP2, sharded, teacher offload": (
        "qwen2",
        2,
        ("--context-parallel-size", "2", *SHARDED, "--teacher-offload", "cpu"),
    ),
}
METHODS = {
    "kd": ("--distillation", "kd"),
    "l2": ("--distillation", "l2"),
    "none": ("--distillation", "none"),
    "lssd of half the samples": ("--distillation-fraction", "0.5"),
    "document masking": ("--document-masking",),
}
ALIGNMENT = {"one rank": (1, ()), "TP2+SP": (2, TP2_SP), "PP2": (2, PP2), "DP2": (2, SHARDED)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alignment_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return test_alignment_training.world.__wrapped__(tmp_path_factory)


@pytest.fixture(scope="module")
def ours(world: Path, tmp_path_factory: pytest.TempPathFactory):
    """Curves of one rank with our layers, by architecture and further flags."""

    @cache
    def run(architecture: str, *more: str) -> dict[str, list[float]]:
        argv = [*cpt_flags(world, architecture), *LOCAL, *more]
        return train(1, "cpt", argv, tmp_path_factory.mktemp("log"))  # the optimizer is Transformer Engine's here too

    return run


def cpt_flags(world: Path, architecture: str) -> list[str]:
    return flags(world, architecture, iterations=NUM_ITERATIONS)


def assert_same(curves: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    keys = [key for key in expected if "tokens per second" not in key]
    assert {"loss", "grad-norm"} <= set(keys)
    for key in keys:
        assert len(curves[key]) == NUM_ITERATIONS, key
        assert curves[key][0] == pytest.approx(expected[key][0], rel=2e-5, abs=1e-5), key
        assert curves[key] == pytest.approx(expected[key], **TOLERANCE), key


@pytest.mark.parametrize("layout", CPT)
def test_layouts_of_continual_pretraining(layout: str, world: Path, ours, tmp_path: Path) -> None:
    architecture, num_ranks, more = CPT[layout]
    curves = train(num_ranks, "cpt", [*cpt_flags(world, architecture), *more], tmp_path)
    assert_same(curves, ours(architecture))


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_continual_pretraining(method: str, world: Path, ours, tmp_path: Path) -> None:
    curves = train(2, "cpt", [*cpt_flags(world, "qwen2"), *METHODS[method], *TP2_SP], tmp_path)
    assert_same(curves, ours("qwen2", *METHODS[method]))


@pytest.fixture(scope="module")
def dense(alignment_world: Path) -> dict[str, dict[str, list[float]]]:
    return test_alignment_training.dense.__wrapped__(alignment_world)


@pytest.mark.parametrize("layout", ALIGNMENT)
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_alignment(stage: str, layout: str, alignment_world: Path, dense, tmp_path: Path) -> None:
    num_ranks, more = ALIGNMENT[layout]
    argv = [*test_alignment_training.flags(alignment_world, stage), *more]
    test_alignment_training.assert_curves(train(num_ranks, stage, argv, tmp_path), dense[stage])


@pytest.mark.parametrize("more", [(), SHARDED], ids=["whole optimizer", "sharded optimizer"])
def test_a_resumed_run_is_the_same_bit_for_bit(more: tuple[str, ...], world: Path, tmp_path: Path) -> None:
    """Transformer Engine's Adam keeps its step where torch's does not: what ``repairs.py`` leaves to the engine."""
    save = ["--save", str(tmp_path / "save"), "--save-interval", "2", *more]
    argv = [*cpt_flags(world, "llama"), *save]
    whole = train(2, "cpt", argv, tmp_path / "whole")
    (tmp_path / "save" / "latest_checkpointed_iteration.txt").write_text("2")
    resumed = train(2, "cpt", argv, tmp_path / "resumed")
    for key in ("loss", "grad-norm"):
        assert resumed[key] == whole[key][2:], key


def test_bfloat16_with_a_float32_copy_of_the_weights(world: Path, ours, tmp_path: Path) -> None:
    """The curve is float32's but for the rounding of bfloat16, 2^-9 of each number."""
    curves = train(2, "cpt", [*cpt_flags(world, "llama"), "--bf16", *TP2_SP, *SHARDED], tmp_path)
    assert curves["loss"] == pytest.approx(ours("llama")["loss"], rel=1e-2)
