"""The Slurm script puts a job back into the queue when it was warned of its end, and only then."""

import os
import subprocess
from pathlib import Path

import pytest

# Stand in for Slurm: srun is a training that ends after the signal in $STOPPED_BY, as engine/preemption.py does.
STUBS = {
    "scontrol": '[ "$1" = show ] && echo node7 || echo "scontrol $*"',
    "srun": '[ -z "$STOPPED_BY" ] || { printf "%s" "$STOPPED_BY" >"$MIXCPT_PREEMPTED"; exit 1; }',
}


@pytest.mark.parametrize(
    ("signal", "code", "requeued"),
    [("SIGUSR1", 1, True), ("SIGTERM", 1, False), ("", 0, False)],
    ids=["warned", "cancelled", "finished"],
)
def test_requeued_when_warned(tmp_path: Path, repository: Path, signal: str, code: int, requeued: bool) -> None:
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "STOPPED_BY": signal,
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_NODELIST": "node7",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "42",
    }
    command = ["bash", str(repository / "examples/slurm/pretrain_mixcpt.sbatch"), "examples/pretrain_mixcpt_llama3.sh"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert ("scontrol requeue 42" in result.stdout) == requeued
