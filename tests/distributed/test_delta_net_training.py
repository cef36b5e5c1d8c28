"""Training of Qwen3.5: packed samples do not reach each other through gated delta nets, and checkpoints are resharded.

Continual pre-training with documents at every layout: ``benchmarks/parity/first_iteration.py --options documents``.
"""

from pathlib import Path

import pytest

from tests.distributed.dense_alignment import expected_sft, make_samples
from tests.distributed.test_alignment_training import flags, train
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import flags as pretraining_flags
from tests.distributed.tiny_run import make_world
from tests.distributed.tiny_run import train as pretrain
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


def test_packed_samples_over_context_parallel_ranks_with_recomputation(tmp_path: Path) -> None:
    folder = tmp_path / "qwen3-5"
    build_model("qwen3-5", 0).save_pretrained(folder)
    save_tiny_tokenizer(folder, vocab_size=VOCAB_SIZE)
    make_samples(tmp_path)
    layout = ["--context-parallel-size", "2", "--recompute-granularity", "selective", "--epochs", "1"]
    found = train(2, "sft", [*flags(tmp_path, "sft", "qwen3-5"), *layout], tmp_path / "log")
    expected = expected_sft(samples=tmp_path / "sft.jsonl", folder=folder, num_iterations=1)
    # float32 on both sides; the recurrence amplifies rounding
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-4), key


def test_optimizer_state_is_resumed_at_another_layout(tmp_path: Path) -> None:
    world = make_world(tmp_path, ("qwen3-5",))
    argv = [*pretraining_flags(world, "qwen3-5", iterations=3), "--use-distributed-optimizer"]
    save = ["--save", str(tmp_path / "save"), "--save-interval", "2"]
    tensor = ["--tensor-model-parallel-size", "2", "--sequence-parallel"]
    whole = pretrain(2, [*argv, *tensor, *save], tmp_path / "whole")
    resume = ["--load", str(tmp_path / "save"), "--ckpt-step", "2", "--pipeline-model-parallel-size", "2"]
    resumed = pretrain(2, [*argv, *resume], tmp_path / "resumed")
    for key in ("loss", "lssd loss", "grad-norm"):
        assert resumed[key] == pytest.approx(whole[key][2:], rel=1e-4), key
