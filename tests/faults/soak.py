"""Hours of load: kills, requests to stop, full disks and damaged checkpoints in random order, on two ranks.

    sudo .venv/bin/python -m tests.faults.soak --hours 2 --seed 1

Each training is started again until it comes to its end. Then its last checkpoint must have the bits of an undisturbed
run, no process may be left of any start, and the memory of the ranks and of the machine must not have grown. The first
thing that is not as it should be ends the soak with exit code 1; its seed repeats the same choices, though not the same
moments. Without root there is no full disk, because that takes a tmpfs of its own.
"""

import argparse
import contextlib
import ctypes
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.faults.small_disk import check, resize, small_disk

ITERATIONS, INTERVAL = 300, 20
DISK_BYTES = 2 << 30
SETTLED = 60  # iterations after which a rank's memory is looked at
ALLOWED_GROWTH_MB = 20.0  # a 100 iterations, of the median start
PR_SET_CHILD_SUBREAPER = 36


class Soak:
    """What happened so far, in one folder."""

    def __init__(self, folder: Path, launchers: list[str], disk: Path | None) -> None:
        self.folder, self.launchers, self.disk = folder, launchers, disk
        self.log, self.marker = folder / "log", folder / "preempted"
        self.counts: Counter[str] = Counter()
        self.growths_mb: list[float] = []
        self.available_mb: list[float] = []

    def run(self, deadline_s: float) -> None:
        """Train until the time is over, a random case after another."""
        from tests.faults.interruptions import CASES, compare

        while time.monotonic() < deadline_s:
            case = random.choice(sorted(CASES))
            save = (self.disk or self.folder) / "save"
            shutil.rmtree(save, ignore_errors=True)
            while not self.start(case, save):
                self.damage(save)
            compare(save, self.undisturbed(case))
            self.counts["trainings"] += 1
            self.available_mb.append(psutil.virtual_memory().available / 1e6)
            self.say(f"{case}: the undisturbed run's bits; {self.available_mb[-1]:,.0f} MB of memory available")

    def undisturbed(self, case: str) -> Path:
        """The folder of the case's run without faults, made when it is first asked for."""
        save = self.folder / f"expected-{case}"
        if not save.exists():
            training = self.launch("fork", case, save)
            training.end(training.ranks())
            check(training.poll() == 0, f"the undisturbed run of {case} failed, see {self.log}")
        return save

    def launch(self, launcher: str, case: str, save: Path):
        """Start the case's command."""
        from tests.faults.interruptions import LAUNCHERS, MARKER, command

        self.marker.unlink(missing_ok=True)
        tool, argv = command(self.folder, case, save, ITERATIONS, INTERVAL)
        return LAUNCHERS[launcher](tool, argv, self.log, {MARKER: str(self.marker)})

    def start(self, case: str, save: Path) -> bool:
        """Start the training and let a fault come to it at a random moment; True where it came to its end before."""
        launcher = random.choice(self.launchers)
        fault = random.choice([self.kill, self.stop, *([self.fill] if self.disk else [])])
        beside = {child.pid for child in psutil.Process().children(recursive=True)}
        training = self.launch(launcher, case, save)
        self.counts["starts"] += 1
        self.wait_for(training, random.randint(1, ITERATIONS))
        if running := training.poll() is None:
            fault(training, launcher)
        check(running or training.poll() == 0, f"{case} failed with {training.poll()}, see {self.log}")
        training.end(training.ranks())
        finished = training.poll() == 0 and not self.marker.exists()
        self.nothing_is_left(beside)
        return finished

    def wait_for(self, training, iterations: int) -> None:
        """Wait until ``iterations`` are over or the training is, and watch the ranks' memory."""
        from tests.faults.interruptions import ITERATION

        seen: list[tuple[int, float]] = []
        while training.poll() is None:
            done = len(ITERATION.findall(self.log.read_text(errors="replace")))
            if done >= iterations:
                break
            seen += [(done, memory)] if (memory := resident_mb(training.ranks())) and done >= SETTLED else []
            time.sleep(0.2)
        if seen and seen[-1][0] - seen[0][0] >= 100:
            half = len(seen) // 2
            grown = statistics.mean(mb for _, mb in seen[half:]) - statistics.mean(mb for _, mb in seen[:half])
            self.growths_mb.append(grown * 200 / (seen[-1][0] - seen[0][0]))

    def kill(self, training, launcher: str) -> None:
        """SIGKILL to a rank, to both, or to torchrun."""
        victim = random.choice(["rank 0", "rank 1", "everything", *(["launcher"] if launcher == "torchrun" else [])])
        training.send(signal.SIGKILL, victim)
        self.happened(f"SIGKILL to {victim}")

    def stop(self, training, launcher: str) -> None:
        """SIGTERM to a rank: it must stop with a checkpoint."""
        victim = random.choice(["rank 0", "rank 1"])
        training.send(signal.SIGTERM, victim)
        self.happened(f"SIGTERM to {victim}")
        training.end(training.ranks())
        check(training.poll() == 0 or self.marker.exists(), f"it did not stop as asked to, see {self.log}")

    def fill(self, training, launcher: str) -> None:
        """No room on the disk from now on: the next checkpoint must end the run in one line. Then there is room."""
        assert self.disk
        resize(self.disk, shutil.disk_usage(self.disk).used + 65536)
        try:
            training.end(training.ranks())
        finally:
            resize(self.disk, DISK_BYTES)
        log = self.log.read_text(errors="replace")
        said = any(line.startswith("error:") for line in log.splitlines())
        check(training.poll() == 0 or said, f"a full disk without a line that says so, see {self.log}")
        self.happened("full disk" if training.poll() else "full disk, after the last checkpoint")

    def damage(self, save: Path) -> None:
        """Now and then, spoil a file of the newest checkpoint: truncate it, empty it or remove it."""
        from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint, iteration_folders, why_incomplete

        whole = [folder for folder in iteration_folders(save) if why_incomplete(folder) is None]
        if len(whole) < 2 or random.random() < 0.6:
            return
        newest = choose_checkpoint(save).folder
        victim = random.choice(sorted(path for path in newest.iterdir() if path.suffix in (".distcp", ".metadata")))
        how = random.choice(["truncated", "emptied", "removed"])
        if how == "removed":
            victim.unlink()
        else:
            os.truncate(victim, victim.stat().st_size // 2 if how == "truncated" else 0)
        self.happened(f"checkpoint's file {how}")

    def nothing_is_left(self, beside: set[int]) -> None:
        """Every process of the start must end within ten seconds of it."""
        deadline = time.monotonic() + 10
        while left := [child for child in psutil.Process().children(recursive=True) if is_left(child, beside)]:
            check(time.monotonic() < deadline, f"left: {[' '.join(each.cmdline()) for each in left]}")
            time.sleep(0.1)

    def happened(self, what: str) -> None:
        self.counts[what] += 1
        self.say(f"  {what}")

    def say(self, line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def summary(self) -> str:
        """Counts, and how memory developed."""
        lines = [f"{count:6,} {what}" for what, count in sorted(self.counts.items())]
        if self.growths_mb:
            grown = f"{statistics.median(self.growths_mb):+.1f} MB, at most {max(self.growths_mb):+.1f} MB"
            lines.append(f"a rank's memory in 100 iterations: median {grown} ({len(self.growths_mb)} starts)")
        if self.available_mb:
            lines.append(
                f"memory available: {self.available_mb[0]:,.0f} MB first, {self.available_mb[-1]:,.0f} MB last"
            )
        return "\n".join(lines)


def is_left(child: psutil.Process, beside: set[int]) -> bool:
    """Whether a process that is not one of ``beside`` still runs; the server of forked ranks stays and is none."""
    try:
        server = any(word in " ".join(child.cmdline()) for word in ("forkserver", "resource_tracker"))
        return child.pid not in beside and child.status() != psutil.STATUS_ZOMBIE and not server
    except psutil.NoSuchProcess:
        return False


def resident_mb(ranks: list[int]) -> float:
    """The largest resident memory of these processes, in MB (1e6 bytes); 0 where none is there."""
    found = [0.0]
    for pid in ranks:
        try:
            found.append(psutil.Process(pid).memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            continue
    return max(found)


def main() -> None:
    """Read the command line, soak, print what happened."""
    from tests.faults.interruptions import make_folder  # not at the top: see kill_training.py

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launchers", nargs="+", choices=("fork", "torchrun"), default=["fork", "torchrun"])
    parser.add_argument("--folder", type=Path, help="for the runs and the last log; a temporary one otherwise")
    options = parser.parse_args()
    random.seed(options.seed)
    # What a start leaves behind becomes a child of this process, so that it is seen.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_folder(folder)
        own_disk = small_disk(folder / "disk", DISK_BYTES) if os.geteuid() == 0 else contextlib.nullcontext()
        with own_disk as disk:
            soak = Soak(folder, options.launchers, disk)
            try:
                soak.run(time.monotonic() + options.hours * 3600)
                growth = statistics.median(soak.growths_mb or [0.0])
                check(growth < ALLOWED_GROWTH_MB, f"a rank's memory grows by {growth:.1f} MB in 100 iterations")
            finally:
                print(f"seed {options.seed}, {options.hours:g} hours\n{soak.summary()}", flush=True)


if __name__ == "__main__":
    main()
