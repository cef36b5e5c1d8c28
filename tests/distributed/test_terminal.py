"""What a person sees who starts a training with torchrun on two ranks, and what is in the rank logs instead."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.tiny_run import flags, make_world

ROOT = Path(__file__).resolve().parents[2]
# What torchrun says about OMP_NUM_THREADS, where that is not set, is not ours.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
PLAN_LINES = 18


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def torchrun(argv: list[str], **environment: str) -> subprocess.CompletedProcess:
    """The real command; both streams as one, as on a terminal."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, str(ROOT / "tools/pretrain_mixcpt.py"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        timeout=240,
    )


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a torchrun that finds the package's entry point, as after an installation."""
    metadata = tmp_path / "path/mixcpt_report-0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mixcpt-report\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(
        "[torchrun.handlers]\nmixcpt-report = megatron_mixcpt.torchrun_report:register\n"
    )
    return {"PYTHONPATH": f"{ROOT}:{metadata.parent}"}


def test_five_steps(world: Path, tmp_path: Path) -> None:
    argv = [*flags(world, iterations=5), "--split", "60,40", "--save", str(tmp_path / "save"), "--save-interval", "5"]
    done = torchrun(argv)
    shown = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    assert len(shown) <= PLAN_LINES + 2 + 6 + 5 + 2 * 5 + 2, done.stdout
    steps = [line for line in shown if line.startswith("iteration ")]
    assert [line.split(" | ")[0] for line in steps] == [f"iteration {number}/5" for number in range(1, 6)]
    for line in steps:
        keys = [pair.split(": ")[0] for pair in line.split(" | ")[1:]]
        assert keys == ["loss", "ntp loss", "lssd loss", "swapped fraction", "tokens per second", "time left"]
        assert len(line) < 160
    assert [re.sub(r": [\d.]+ s$", "", line) for line in shown if re.search(r" \.\.\.$| [\d.]+ s$", line)] == [
        "loading weights ...",
        "weights loaded",
        "building datasets ...",
        "datasets built",
        "first step ...",
        "first step done",
        "saving checkpoint at iteration 5 ...",
        f"checkpoint saved in {tmp_path}/save",
    ]
    assert sum(line.startswith("validation set") for line in shown) == 2
    (where,) = (line for line in shown if line.startswith("2 ranks on "))
    assert "TP 1 x PP 1 x DP 2; torch " in where and "megatron-core 0." in where
    for foreign in ("arguments", "mock", "PPL", "billions", "Warning", "WARNING", "deprecated", "datetime"):
        assert foreign not in done.stdout, foreign
    logs = [(tmp_path / f"save/logs/rank-0000{rank}.log").read_text() for rank in range(2)]
    assert all(log.startswith("===== run started ") for log in logs)
    assert "end of arguments" in logs[0] and "successfully saved checkpoint" in logs[0]
    # The engine's line is there with its own digits; its second one is a mean with the first step.
    first = re.search(r"iteration +1/ +5 .*? \| loss: (\S+)", logs[1])
    assert first and float(first[1]) == pytest.approx(float(re.search(r" loss: (\S+)", steps[0])[1]), rel=1e-5)
    second = re.search(r"iteration +2/ +5 .*? \| loss: (\S+)", logs[1])
    mean = sum(float(re.search(r" loss: (\S+)", line)[1]) for line in steps[:2]) / 2
    assert second and float(second[1]) == pytest.approx(mean, rel=1e-5)


def test_verbose_shows_what_the_engine_prints(world: Path, tmp_path: Path) -> None:
    done = torchrun(
        [*flags(world, iterations=1), "--verbose", "--save", str(tmp_path / "save"), "--save-interval", "1"]
    )
    assert done.returncode == 0, done.stdout
    for text in ("end of arguments", "successfully saved checkpoint", "iteration 1/1 | loss: "):
        assert text in done.stdout, text
    assert "end of arguments" in (tmp_path / "save/logs/rank-00000.log").read_text()


def test_a_users_error_is_one_line_and_the_last(world: Path, installed: dict[str, str]) -> None:
    done = torchrun([*flags(world, iterations=1), "--alpha", "2"], **installed)
    *before, last = done.stdout.splitlines()
    assert done.returncode == 1
    assert last == "error: --alpha 2.0: must be between 0 and 1"
    assert len(before) <= 1 and all(line.startswith("cpu_emulation: ") for line in before)


def test_torchrun_repeats_the_error_where_it_does_not_know_the_package(world: Path) -> None:
    """A bare PYTHONPATH: the report of torchrun names the error, and the ranks print it once."""
    done = torchrun([*flags(world, iterations=1), "--mixture", str(world / "nowhere")])
    lines = [line for line in done.stdout.splitlines() if "nowhere" in line and "error: " in line]
    assert done.returncode == 1 and lines[0].startswith("error: ")
    if "ChildFailedError" in done.stdout:  # the package of this environment may be installed
        assert len(lines) == 2 and lines[1].strip().startswith("traceback : error: ")


def test_other_failures_keep_the_report_of_torchrun(installed: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "bug.py"
    script.write_text("raise RuntimeError('a bug')\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | ENVIRONMENT | installed, timeout=120
    )
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr and "bug.py FAILED" in done.stderr
