"""Mixtures of experts through the real trainers, with auxiliary losses, against transformers and dense formulas.

Float32 everywhere; tolerances as in ``test_pretrain.py`` and ``test_alignment_training.py``. More kinds and layouts are
in ``benchmarks/parity/first_iteration.py``.
"""

from pathlib import Path

import pytest

from tests.distributed.dense_alignment import NUM_SAMPLES, make_samples
from tests.distributed.dense_iteration import expected_first_iteration
from tests.distributed.dense_router_losses import COEFFICIENTS, FLAGS, expected_alignment
from tests.distributed.test_alignment_training import NUM_ITERATIONS, assert_curves
from tests.distributed.test_alignment_training import flags as alignment_flags
from tests.distributed.test_alignment_training import train as train_alignment
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import flags, make_world, train
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

EP2 = ["--expert-model-parallel-size", "2"]
EXCHANGED = [*EP2, "--moe-token-dispatcher-type", "alltoall"]
TP2_EP2 = ["--tensor-model-parallel-size", "2", "--sequence-parallel", *EXCHANGED, "--expert-tensor-parallel-size", "1"]
# Pipeline stages and recomputation: a router meets a microbatch twice, and others in between.
PP2_RECOMPUTED = [
    *("--pipeline-model-parallel-size", "2"),
    *("--recompute-granularity", "full", "--recompute-method", "uniform", "--recompute-num-layers", "1"),
]
KEYS = ("loss", "lssd loss", "grad-norm", *COEFFICIENTS)


def test_pretraining_and_resuming_at_other_sizes(tmp_path: Path) -> None:
    """The teacher is a mixture of experts too, and adds nothing to the auxiliary losses."""
    world = make_world(tmp_path / "world", ["qwen3-moe"])
    argv = [*flags(world, "qwen3-moe", iterations=4), *FLAGS, "--moe-router-dtype", "fp32"]
    save = ["--save", str(tmp_path / "save"), "--save-interval", "2"]
    whole = train(2, [*argv, *TP2_EP2, *save], tmp_path / "whole")
    expected = expected_first_iteration(world, "qwen3-moe", router_losses=True)
    for key in KEYS:
        assert whole[key][0] == pytest.approx(expected[key], rel=2e-4), key
    (tmp_path / "save" / "latest_checkpointed_iteration.txt").write_text("2")
    load = ["--load", str(tmp_path / "save"), "--ckpt-step", "2"]
    again = train(2, [*argv, *TP2_EP2, *load], tmp_path / "again")
    without = train(2, [*argv, *PP2_RECOMPUTED, *load], tmp_path / "without")
    # A token whose experts are nearly equal may go to the other one; of 768 rows a step, few do.
    assert min(whole["expert load max/mean"]) > 1.0
    for key in ("expert load max/mean", "experts without tokens"):
        assert without[key] == pytest.approx(whole[key][2:], rel=0.05), key
    for key in KEYS:
        assert again[key] == whole[key][2:], key
        assert without[key] == pytest.approx(whole[key][2:], rel=1e-3), key


@pytest.mark.parametrize(("stage", "kind"), [("sft", "mixtral"), ("dpo", "qwen3-moe")])
def test_alignment_over_expert_parallel_ranks(stage: str, kind: str, tmp_path: Path) -> None:
    """Rows of several lengths, so that padding, and each row's own weight, make a difference."""
    build_model(kind, 0).save_pretrained(tmp_path / kind)
    save_tiny_tokenizer(tmp_path / kind, vocab_size=VOCAB_SIZE)
    make_samples(tmp_path)
    argv = [*alignment_flags(tmp_path, stage, kind), *EXCHANGED, *FLAGS, "--no-packing"]
    curves = train_alignment(2, stage, argv, tmp_path / "log")
    expected = expected_alignment(stage, tmp_path / kind, tmp_path / f"{stage}.jsonl", NUM_ITERATIONS)
    assert expected.keys() == {"loss", "grad-norm", *COEFFICIENTS} <= curves.keys()
    assert_curves(curves, expected)
    assert curves["batch-size"] == [NUM_SAMPLES] * NUM_ITERATIONS
