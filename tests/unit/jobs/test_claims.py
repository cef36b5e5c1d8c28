"""Claims between real processes: who holds a folder, when it may be taken over, and that only one takes it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt.jobs import claims
from megatron_mixcpt.jobs.claims import Claim, ClaimLostError, Found, Holder, age, described, found_in, take

# A process that claims the folder it is given, says so, and holds it until it is killed.
HOLDING = """
import sys, time
from pathlib import Path
from megatron_mixcpt.jobs.claims import Holder, take
print(take(Path(sys.argv[1]), Holder.this_process()).refresh(), flush=True)
time.sleep(60)
"""
ELSEWHERE = Holder("node7", 1, "another boot pid:[1] 5", 0.0, None, (0, 0))
"""A process that cannot be seen from here."""


def make_stale(folder: Path) -> None:
    for path in folder.glob(".claim-*"):
        long_ago = time.time() - claims.STALE_AFTER_S - 1
        os.utime(path, (long_ago, long_ago))


def taken(folder: Path, holder: Holder) -> Claim:
    claim = take(folder, holder)
    assert isinstance(claim, Claim)
    return claim


def test_second_process_is_told_of_the_first_and_takes_over_where_that_was_killed(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLDING, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "None\n"
        found = take(tmp_path, Holder.this_process())
        assert isinstance(found, Found) and found.holder is not None
        assert f"process {first.pid} on {os.uname().nodename}, started 0 s ago" in described(found.holder).replace(
            "started 1 s", "started 0 s"
        )
        first.send_signal(signal.SIGSTOP)
        assert isinstance(take(tmp_path, Holder.this_process()), Found), "it is suspended, and still there"
        first.kill()
        wait_for_zombie(first.pid)
        taken(tmp_path, Holder.this_process()).release()
        assert list(tmp_path.iterdir()) == []
    finally:
        first.kill()
        first.wait()


def wait_for_zombie(pid: int) -> None:
    """Nobody has asked for its exit code yet: the number is still its own."""
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


def test_number_of_a_process_may_be_given_again(tmp_path: Path) -> None:
    me = Holder.this_process()
    boot, space, started = me.process.rsplit(" ", 2)
    taken(tmp_path, replace(me, process=f"{boot} {space} {int(started) - 1}"))  # the number was another process's
    taken(tmp_path, me).release()
    taken(tmp_path, replace(me, process=f"{boot} pid:[1] {started}"))  # of another container, which is not seen
    assert isinstance(take(tmp_path, me), Found)


def test_stale_claim_is_taken_over_and_its_holder_learns_of_it(tmp_path: Path) -> None:
    suspended = taken(tmp_path, ELSEWHERE)
    assert isinstance(take(tmp_path, Holder.this_process()), Found)
    make_stale(tmp_path)
    suspended.refresh()
    assert isinstance(take(tmp_path, Holder.this_process()), Found), "it has given a sign of life"
    make_stale(tmp_path)
    second = taken(tmp_path, Holder.this_process())
    with pytest.raises(ClaimLostError, match=f"process {os.getpid()} on {os.uname().nodename}"):
        suspended.refresh()
    suspended.release()
    second.refresh()
    second.release()
    with pytest.raises(ClaimLostError):
        suspended.refresh()
    third = taken(tmp_path, replace(ELSEWHERE, host="node8"))  # under the first one's name
    with pytest.raises(ClaimLostError, match="node8"):
        suspended.refresh()
    suspended.release()
    third.refresh()


def test_holder_learns_of_a_takeover_that_has_not_removed_its_claim_yet(tmp_path: Path) -> None:
    first = taken(tmp_path, ELSEWHERE)
    (tmp_path / ".claim-2").write_text(json.dumps(asdict(replace(ELSEWHERE, host="node9"))))
    with pytest.raises(ClaimLostError, match="node9"):
        first.refresh()


def test_of_several_that_take_over_at_once_one_succeeds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(4), context.Queue()
    processes = [context.Process(target=race, args=(tmp_path, barrier, outcomes)) for _ in range(4)]
    for process in processes:
        process.start()
    won = Counter(outcomes.get(timeout=60) for _ in range(4 * ROUNDS))
    for process in processes:
        process.join()
    assert {won[turn, True] for turn in range(ROUNDS)} == {1}


ROUNDS = 40


def race(folder: Path, barrier: Any, outcomes: Any) -> None:
    """One of four: in each round a stale claim is there, and all take it over."""
    for turn in range(ROUNDS):
        inside = folder / str(turn)
        if barrier.wait() == 0:
            inside.mkdir()
            taken(inside, ELSEWHERE)
            make_stale(inside)
        barrier.wait()
        outcomes.put((turn, isinstance(take(inside, Holder.this_process()), Claim)))
        barrier.wait()


def test_claim_whose_holder_is_still_writing_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".claim-3").touch()
    found = take(tmp_path, Holder.this_process())
    assert isinstance(found, Found) and found.holder is None
    make_stale(tmp_path)
    taken(tmp_path, Holder.this_process())
    assert [path.name for path in tmp_path.iterdir()] == [".claim-4"]


def test_earlier_attempt_of_the_same_job() -> None:
    def holder(**environment: str) -> Holder:
        return Holder.this_process(environment)

    first = holder(SLURM_JOB_ID="31", TORCHELASTIC_RUN_ID="31")
    assert holder(SLURM_JOB_ID="31", SLURM_RESTART_COUNT="1").follows(first)
    assert holder(SLURM_JOB_ID="31", TORCHELASTIC_RESTART_COUNT="1").follows(first)
    assert not holder(SLURM_JOB_ID="31").follows(first), "started twice"
    assert not holder(SLURM_JOB_ID="32", SLURM_RESTART_COUNT="1").follows(first)
    assert not holder(TORCHELASTIC_RUN_ID="none", TORCHELASTIC_RESTART_COUNT="1").follows(holder())
    assert holder(TORCHELASTIC_RUN_ID="a", TORCHELASTIC_RESTART_COUNT="1").follows(holder(TORCHELASTIC_RUN_ID="a"))
    assert "(Slurm job 31)" in described(first)


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    assert found_in(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 1 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h"), (300, "5 min")]
)
def test_age(seconds: float, said: str) -> None:
    assert age(seconds) == said
