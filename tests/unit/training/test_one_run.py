"""One training at a time in ``--save``: of every trainer, on all ranks, and with a claim that is lost on the way."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
import torch.distributed as dist

from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.jobs import claims
from megatron_mixcpt.jobs.claims import Claim, Holder, found_in, take
from megatron_mixcpt.testing import run_distributed
from megatron_mixcpt.training import one_run
from megatron_mixcpt.training.one_run import check_still_held, only_run_in
from tests.distributed.tiny_run import flags, make_world
from tests.unit.jobs.test_claims import ELSEWHERE, make_stale

REFUSAL = (
    r"--save \S+: another run is writing there, process {pid} on \S+, started [\w ]+ ago, last sign of life [\w ]+ ago"
)


@pytest.fixture(autouse=True)
def single_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")


def test_folder_is_free_again_afterwards_and_not_left_empty(tmp_path: Path) -> None:
    save = tmp_path / "new" / "save"
    with only_run_in(str(save), dry_run=False):
        check_still_held()
        assert found_in(save) is not None
    assert not save.exists()
    with pytest.raises(ZeroDivisionError), only_run_in(str(tmp_path), dry_run=False):
        (tmp_path / "file").touch()
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["new", "file"] or found_in(tmp_path) is None
    check_still_held()


def test_dry_run_claims_nothing_and_says_who_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with only_run_in(str(tmp_path / "none"), dry_run=True):
        assert not (tmp_path / "none").exists()
    with only_run_in(str(tmp_path), dry_run=False), only_run_in(str(tmp_path), dry_run=True):
        pass
    assert f"is in use now: process {os.getpid()} on" in capsys.readouterr().out


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--save \S+file/save cannot be written"):
        with only_run_in(str(tmp_path / "file" / "save"), dry_run=False):
            pass


def test_it_waits_for_an_earlier_attempt_and_for_one_that_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(one_run, "_POLL_S", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    earlier = take(tmp_path, replace(ELSEWHERE, job="Slurm job 31"))
    assert isinstance(earlier, Claim)
    threading.Timer(0.2, earlier.release).start()
    with only_run_in(str(tmp_path), dry_run=False):
        pass
    assert "waiting for an earlier attempt of this job, to leave" in capsys.readouterr().out
    monkeypatch.setattr(claims, "SILENT_AFTER_S", 0.1)
    monkeypatch.setattr(claims, "STALE_AFTER_S", 0.6)
    gone = take(tmp_path, ELSEWHERE)
    assert isinstance(gone, Claim)
    with pytest.raises(ConfigError, match="another run is writing there, process 1 on node7"):
        with only_run_in(str(tmp_path), dry_run=False):
            pass
    time.sleep(0.2)
    with only_run_in(str(tmp_path), dry_run=False):
        assert "waiting for another run, which may be gone" in capsys.readouterr().out


def test_earlier_attempt_that_does_not_end_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "_POLL_S", 0.01)
    monkeypatch.setattr(claims, "STALE_AFTER_S", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "31")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    earlier = take(tmp_path, replace(ELSEWHERE, job="Slurm job 31"))
    assert isinstance(earlier, Claim)
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.05):
            earlier.refresh()

    threading.Thread(target=live).start()
    try:
        with pytest.raises(ConfigError, match=r"process 1 on node7 \(Slurm job 31\)"):
            with only_run_in(str(tmp_path), dry_run=False):
                pass
    finally:
        over.set()


STARTING = """
import os, sys, time
from megatron_mixcpt.rank_exit import _leave
from megatron_mixcpt.training.one_run import only_run_in
with only_run_in(sys.argv[1], dry_run=False):
    print(flush=True)
    if sys.argv[2] == "leave":
        _leave(3)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR1, -signal.SIGUSR1), ("leave", 3)]
)
def test_it_is_released_by_a_signal_at_the_start_and_where_a_rank_leaves_at_once(
    end: str | signal.Signals, code: int, tmp_path: Path
) -> None:
    run = [sys.executable, "-c", STARTING, tmp_path, str(end)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    if isinstance(end, signal.Signals):
        process.send_signal(end)
    assert process.wait(60) == code
    assert list(tmp_path.iterdir()) == []


def test_refused_by_every_trainer_on_every_rank(tmp_path: Path) -> None:
    with only_run_in(str(tmp_path / "save"), dry_run=False), socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        run_distributed(refused_ranks, 2, str(tmp_path / "save"), os.getpid(), port, cpu_emulation=True)
        assert found_in(tmp_path / "save") is not None
        assert [path.name for path in (tmp_path / "save").iterdir()] == [".claim-1"]  # and nothing was written


def refused_ranks(save: str, pid: int, port: int) -> None:
    """Once with the process groups there already, once before there are any, as with torchrun."""
    from megatron_mixcpt.training.alignment.dpo import main as dpo
    from megatron_mixcpt.training.alignment.sft import main as sft
    from megatron_mixcpt.training.pretraining.cpt import main as cpt

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for main in (cpt, sft, dpo):
        with pytest.raises(ConfigError, match=REFUSAL.format(pid=pid)), contextlib.redirect_stdout(io.StringIO()):
            main.__wrapped__(["--save", save])
    with mock.patch.object(dist, "is_initialized", lambda: False):
        with pytest.raises(ConfigError, match=REFUSAL.format(pid=pid)):
            with only_run_in(save, dry_run=False):
                pass
    dist.barrier()


def test_run_that_has_lost_its_claim_writes_no_further_checkpoint(tmp_path: Path) -> None:
    """It goes on after it was suspended for too long: here its refreshes are far apart, and its claim is made old."""
    world, save = make_world(tmp_path), tmp_path / "save"
    argv = [*flags(world, iterations=6), "--save-interval", "2", "--save", str(save)]
    run_distributed(losing_rank, 1, argv, str(save), cpu_emulation=True, timeout_s=120)
    assert [path.name for path in save.glob("iter_*")] == ["iter_0000002"]
    assert (save / "latest_checkpointed_iteration.txt").read_text() == "2"
    found = found_in(save)
    assert found is not None and found.holder == ELSEWHERE


def losing_rank(argv: list[str], save: str) -> None:
    from megatron_mixcpt.training.engine.loss_watch import LossWatch
    from megatron_mixcpt.training.pretraining.cpt import main

    with mock.patch.object(LossWatch, "forward_step", taking_over(LossWatch.forward_step, Path(save))):
        with pytest.raises(
            CheckpointError, match=r"another run has taken over --save \S+ \(process 1 on node7"
        ) as lost:
            main.__wrapped__(argv)
    assert "\n" not in str(lost.value)


def taking_over(watched, save: Path):
    """As soon as the first checkpoint is there, another takes over."""

    def forward_step(self, step):
        watched_step = watched(self, step)

        def stepping(*positional, **named):
            if (save / "latest_checkpointed_iteration.txt").exists() and found_in(save).holder != ELSEWHERE:
                with mock.patch.object(Holder, "is_gone", lambda _: False):
                    make_stale(save)
                    assert isinstance(take(save, ELSEWHERE), Claim)
            return watched_step(*positional, **named)

        return stepping

    return forward_step


def test_keeper_ends_a_rank_whose_claim_is_lost(tmp_path: Path) -> None:
    """It need not come to a checkpoint: a process that is stopped for too long ends when it goes on."""
    script = f"""
from megatron_mixcpt.jobs import claims
claims.REFRESH_S, claims.STALE_AFTER_S = 0.1, 0.5
import os, time
os.environ |= {{"RANK": "0", "WORLD_SIZE": "1"}}
from megatron_mixcpt.training.one_run import only_run_in
with only_run_in({str(tmp_path)!r}, dry_run=False):
    print(flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "\n"
    time.sleep(0.7)
    assert isinstance(take(tmp_path, ELSEWHERE), claims.Found), "it is refreshed"
    process.send_signal(signal.SIGSTOP)
    make_stale(tmp_path)
    assert isinstance(take(tmp_path, ELSEWHERE), Claim)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 1
    assert re.search(r"error: another run has taken over --save \S+ \(process 1 on node7", process.stdout.read())
    assert timedelta(seconds=claims.STALE_AFTER_S) == timedelta(minutes=5)  # as docs/how-to/recover.md says
