"""The engine's unmodified `pretrain()` on CPU ranks, in every layout the platform promises."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_mixcpt.testing import run_distributed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the platform for machines without CUDA")

ALL_OF_DP = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
# Four ranks each. The first makes the checkpoint that the others start from.
LAYOUTS = {
    "DP4, distributed optimizer": ALL_OF_DP,
    "TP2 x DP2, sequence parallel, selective recomputation": (
        "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer "
        "--recompute-granularity selective"
    ),
    "PP2 x DP2": f"--pipeline-model-parallel-size 2 {ALL_OF_DP}",
    "TP2 x PP2 of two virtual stages, full recomputation": (
        "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 "
        "--use-distributed-optimizer --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    ),
}
BF16 = "--tensor-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer --bf16"
ASYNC = "--async-save --use-persistent-ckpt-worker --async-strategy mcore"
CHECKPOINT = "--ckpt-fully-parallel-save --dist-ckpt-optim-fully-reshardable --save-interval 2"


def test_layouts_agree_and_reshard(tmp_path: Path) -> None:
    """Iterations 1-5 in the first layout; 3-5 in each layout, resumed from its checkpoint of iteration 2."""
    run_distributed(check_layouts, 4, str(tmp_path), timeout_s=240, cpu_emulation=True)


def check_layouts(folder: str) -> None:
    from tests.distributed.tiny_pretrain import train

    first, *others = LAYOUTS.items()
    expected = train("--train-iters", "5", "--save", folder, *CHECKPOINT.split(), *first[1].split())
    assert len(expected) == 5 and expected[4] < expected[0] - 0.02, expected
    resume = f"--train-iters 5 --load {folder} --ckpt-step 2 --save-interval 100".split()
    again = train(*resume, *first[1].split())
    assert again == expected[2:], "resumed in the same layout, it must be bit for bit the same"
    for name, flags in others:
        losses = train(*resume, *flags.split())
        # float32 sums in another order, through Adam, whose first steps divide small numbers by small numbers.
        torch.testing.assert_close(losses, expected[2:], rtol=0, atol=1e-3, msg=lambda text, name=name: name + text)


def test_asynchronous_save_in_bfloat16(tmp_path: Path) -> None:
    """The checkpoint written while training went on resumes to the very losses that training came to.

    It runs under torchrun, for the writer is a process that imports the entry script.
    """
    flags = f"--train-iters 4 --save {tmp_path} {CHECKPOINT} {BF16} {ASYNC}".split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command = [*torchrun, "--rdzv-endpoint=localhost:0", str(Path(__file__).with_name("tiny_pretrain.py")), *flags]
    repository = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr[-3000:]
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("losses "))
    losses = [float(loss) for loss in line.split()[1:]]
    run_distributed(check_resumed_losses, 2, str(tmp_path), losses, timeout_s=240, cpu_emulation=True)


def check_resumed_losses(folder: str, expected: list[float]) -> None:
    from tests.distributed.tiny_pretrain import train

    flags = f"--train-iters 4 --load {folder} --ckpt-step 2 --save-interval 100 {BF16}"
    assert train(*flags.split()) == expected[2:]
