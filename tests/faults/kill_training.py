"""Kill training at random moments, start the same command again, and see that it ends with the same weights.

    python -m tests.faults.kill_training --kills 50 [--case tp2] [--folder DIR] [--seed 0]

Trains a tiny Llama on two ranks under torchrun once undisturbed. Then, again and again: starts the same training in a
folder of its own, kills (SIGKILL) a rank, torchrun or everything some iterations on or while a checkpoint is written,
starts the same command, until it comes to its end; and compares the last checkpoint's weights with the undisturbed
run's, bit for bit. ``--folder`` keeps the undisturbed runs for the next call.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from megatron_mixcpt.conversion.megatron_layout import Place
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from tests.distributed.tiny_run import flags, make_world

ROOT = Path(__file__).parents[2]
NUM_ITERATIONS = 24
TP2 = ["--tensor-model-parallel-size", "2", "--use-distributed-optimizer"]
DP2 = ["--use-distributed-optimizer"]
PP2 = ["--pipeline-model-parallel-size", "2"]
CASES = {"tp2": TP2, "dp2": DP2, "pp2": PP2, "async": [*TP2, "--async-save"], "keep-last": [*TP2, "--keep-last", "2"]}
ITERATION, SAVING = re.compile(r"iteration +\d+/"), re.compile("saving checkpoint at")  # as the engine's log has them
VICTIMS = ("rank 0", "rank 1", "torchrun", "everything")


def main() -> None:
    """Run, kill, compare; exits with 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--case", choices=sorted(CASES), default="tp2")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "world").exists():
            make_world(folder / "world")
        drill(folder, arguments.case, arguments.kills)


def drill(folder: Path, case: str, num_kills: int) -> None:
    """Kill ``num_kills`` times, in as many trainings as that takes."""
    expected = folder / f"expected-{case}"
    if not (expected / "finished").exists():
        shutil.rmtree(expected, ignore_errors=True)
        run_to_the_end(command(folder, case, expected), folder / "expected.log")
        (expected / "finished").touch()
    kills = trainings = 0
    while kills < num_kills:
        save = folder / f"killed-{case}"
        shutil.rmtree(save, ignore_errors=True)
        survived = 0
        while kill_once(command(folder, case, save), folder / "killed.log"):
            survived += 1
        compare(save, expected)
        kills, trainings = kills + survived, trainings + 1
        print(f"{case}: {survived} kills, then the same weights ({kills} of {num_kills})", flush=True)
    print(f"{case}: {kills} kills in {trainings} trainings, all ended with the same bits")


def command(folder: Path, case: str, save: Path) -> list[str]:
    """What a user would type, and type again."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(ROOT / "tools" / "pretrain_mixcpt.py"), *flags(folder / "world", iterations=NUM_ITERATIONS)),
        *("--save", str(save), "--save-interval", "2", *CASES[case]),
    ]


def run_to_the_end(argv: list[str], log: Path) -> None:
    """Run without a kill; exits where that fails."""
    with log.open("wb") as output:
        code = subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, env=environment(), check=False).returncode
    if code:
        sys.exit(f"failed with {code}, see {log}: {' '.join(argv)}")


def kill_once(argv: list[str], log: Path) -> bool:
    """Start the command and kill it at a random moment; False where it had come to its end before."""
    victim, while_saving = random.choice(VICTIMS), random.random() < 0.5
    with log.open("wb") as output:
        torchrun = subprocess.Popen(argv, stdout=output, stderr=subprocess.STDOUT, env=environment())
        try:
            if not wait_for_moment(torchrun, log, while_saving):
                if torchrun.returncode:
                    sys.exit(f"failed with {torchrun.returncode}, see {log}: {' '.join(argv)}")
                return False
            ranks = children(torchrun.pid)
            kill(victim, torchrun.pid, ranks)
            print(f"  killed {victim} after {last_iteration(log)}", "while saving" if while_saving else "", flush=True)
            torchrun.wait()
            wait_until_gone(ranks)
        finally:
            for pid in (*children(torchrun.pid), torchrun.pid) if torchrun.poll() is None else ():
                os.kill(pid, signal.SIGKILL)
    return True


def wait_for_moment(torchrun: subprocess.Popen, log: Path, while_saving: bool) -> bool:
    """Wait until some iterations have run, or a save began, and a moment longer; False where training ended first."""
    what = SAVING if while_saving else ITERATION
    how_often, longest_s = (random.randint(1, 4), 0.1) if while_saving else (random.randint(1, 9), 0.5)
    while torchrun.poll() is None:
        if len(what.findall(log.read_text(errors="replace"))) >= how_often:
            time.sleep(random.uniform(0.0, longest_s))
            return torchrun.poll() is None
        time.sleep(0.002)
    return False


def kill(victim: str, torchrun: int, ranks: list[int]) -> None:
    """Send SIGKILL."""
    chosen = {"torchrun": [torchrun], "everything": [torchrun, *ranks]}.get(victim)
    for pid in chosen or [ranks[int(victim[-1])]]:
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started, the oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def wait_until_gone(pids: list[int], timeout_s: float = 60.0) -> None:
    """Exits where a process outlives its torchrun: it would write into the next one's checkpoints."""
    deadline = time.monotonic() + timeout_s
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            sys.exit(f"ranks {left} went on for {timeout_s:g} s after torchrun had ended")
        time.sleep(0.05)


def last_iteration(log: Path) -> str:
    """The last iteration that the log shows."""
    lines = ITERATION.findall(log.read_text(errors="replace"))
    return lines[-1] if lines else "the start"


def environment() -> dict[str, str]:
    """One thread a rank: two ranks with a thread pool each would wait for one another."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def compare(folder: Path, expected_folder: Path) -> None:
    """Exits unless both last checkpoints are of the same iteration and have the same bits."""
    actual, expected = MegatronCheckpoint(folder), MegatronCheckpoint(expected_folder)
    if actual.iteration != expected.iteration:
        sys.exit(f"{folder} ends at iteration {actual.iteration}, not {expected.iteration}")
    for key in expected.model_tensors():
        if not torch.equal(actual.read(Place(key)), expected.read(Place(key))):
            sys.exit(f"{key} differs from the undisturbed run's")


if __name__ == "__main__":
    main()
