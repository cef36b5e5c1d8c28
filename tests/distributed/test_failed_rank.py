"""One of two ranks fails: both end, with everything they started, and torchrun starts the run again.

The whole matrix of tools, phases and options is ``python -m tests.faults.failed_rank``.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.tiny_run import make_world
from tests.faults.failed_rank import ASYNC, OVERLAP, ROOT, WORKERS, command, drill, marked

FULL = r"error: rank 1: the GPU's memory is full \(2\.00 GiB more were needed\): .* tools/plan\.py"
# PyTorch learns of it by a signal or, where it waits for a sample just then, by looking after its workers.
LOST_WORKER = r"error: rank 1: a worker of the data loader .* (was killed|exited), .* --num-workers"
# Fault, flags, what the user reads.
FAULTS = [
    ("forward", [*WORKERS, *OVERLAP], FULL),
    ("backward", WORKERS, FULL),
    ("optimizer", WORKERS, FULL),
    ("data", WORKERS, r"OutOfMemoryError: Caught OutOfMemoryError in DataLoader worker process"),
    ("save", WORKERS, r"Worker failure: .*OutOfMemoryError"),
    ("save", [*WORKERS, *ASYNC], r"Worker failure: .*OutOfMemoryError"),
    ("worker-killed", WORKERS, LOST_WORKER),
    ("writer-killed", ASYNC, r"error: rank 1: the process that writes asynchronous checkpoints was killed \(SIGKILL\)"),
    ("rank-killed", [*WORKERS, *ASYNC], ""),
    ("hung-peer", WORKERS, "ZeroDivisionError: a bug"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(("fault", "flags", "said"), FAULTS)
def test_both_ranks_end_and_nothing_is_left(
    fault: str, flags: list[str], said: str, world: Path, tmp_path: Path
) -> None:
    end = drill("pretrain_mixcpt", [*command(world, "pretrain_mixcpt", tmp_path / "save"), *flags], fault, tmp_path)
    assert all(end.codes), f"{end.codes}\n{end.output}"
    assert end.left == []
    assert re.search(said, end.output), end.output
    assert end.output.count("Traceback (most recent call last)") <= 2 + ("in DataLoader worker" in end.output)


def test_torchrun_starts_it_again_and_it_ends_as_if_undisturbed(world: Path, tmp_path: Path) -> None:
    flags = ["--deterministic", *WORKERS, *OVERLAP]
    (tmp_path / "undisturbed").mkdir()
    expected = command(world, "pretrain_mixcpt", tmp_path / "expected")
    assert drill("pretrain_mixcpt", [*expected, *flags], "none", tmp_path / "undisturbed").codes == [0, 0]
    mark = {"FAULT": "late-bug", "FAULT_RANK": "1", "FAULT_FILE": str(tmp_path / "came")}
    restarting = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["--max-restarts", "1", str(ROOT / "tests/faults/faulty.py"), "pretrain_mixcpt"]
    done = subprocess.run(
        [*restarting, *script, *command(world, "pretrain_mixcpt", tmp_path / "save"), *flags],
        env=os.environ | mark | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and (tmp_path / "came").exists(), done.stdout + done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr
    assert losses(tmp_path / "save") == losses(tmp_path / "expected")
    assert marked(f"FAULT_FILE={tmp_path / 'came'}") == []


def losses(save: Path) -> dict[int, float]:
    """By iteration; what a run that was started again has repeated is there once."""
    events = EventAccumulator(str(save / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars("loss")}
