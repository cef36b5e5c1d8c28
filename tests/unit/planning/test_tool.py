"""tools/plan.py as users call it."""

import subprocess
import sys
from pathlib import Path


def plan(repository: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(repository / "tools/plan.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_flags_are_the_trainers(repository: Path) -> None:
    flags = "--hf-model llama-3-70b --num-gpus 64 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 4"
    more = "--sequence-parallel --use-distributed-optimizer --no-gradient-accumulation-fusion --recompute-modules mlp"
    objective = "--bf16 --alpha 0.5 --distillation-fraction 0.5 --global-batch-size 1920 --recompute-activations"
    result = plan(repository, *flags.split(), *more.split(), *objective.split())
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "70.55 billion parameters, bfloat16, TP 8 x PP 4 x CP 1 x DP 2; microbatches of 1 x 2048 tokens, 960 on each "
        "rank in each step; GiB on each rank:"
    )
    assert lines[1].split() == ("stage student teacher gradients optimizer activations logits temporary peak".split())
    assert [line.split()[0] for line in lines[2:6]] == ["0", "1", "2", "3"]
    assert lines[6].startswith("fits: stage 0: ")


def test_a_mixture_of_experts(repository: Path) -> None:
    flags = "--hf-model qwen3-30b-a3b --num-gpus 16 --bf16 --use-distributed-optimizer --expert-model-parallel-size 8"
    result = plan(repository, *flags.split())
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        "30.53 billion parameters (3.35 billion for each token), bfloat16, TP 1 x PP 1 x CP 1 x DP 16, experts EP 8 x "
        "ETP 1 x DP 2; "
    )
    assert "the plan assumes that routers spread tokens evenly" in result.stdout


def test_without_distillation_no_teacher_is_planned(repository: Path) -> None:
    result = plan(repository, "--hf-model", "qwen2-7b", "--alpha", "1", "--tensor-model-parallel-size", "4", "--bf16")
    assert result.stdout.splitlines()[2].split()[2] == "0.00"


def test_what_cannot_be_is_one_line(repository: Path) -> None:
    result = plan(repository, "--hf-model", "qwen2-7b", "--tensor-model-parallel-size", "8")
    assert result.returncode == 1
    assert result.stderr == (
        "error: --tensor-model-parallel-size 8 does not divide the model's 28 attention heads: choose 4\n"
    )
