"""Cut the power at any point of saving, preprocessing, exporting, scoring and evaluating, and see what is left.

    python -m tests.faults.cut_power [--kinds cpt preprocess ...] [--cuts 200] [--resumes 4] [--seed 0]

Records what a command does to its folder (``system_calls.py``), then lets the power fail after one change or another
(``disk.py``). In what is left, all that has its final name must be whole, and the last checkpoint that was flushed must
be found. ``--resumes`` times the same command is started there: it must end with the same bytes, a training with the
same weights. After the command's end nothing may be lost. Prints a row for each kind; exits with 1 where any fails.
"""

import argparse
import contextlib
import functools
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults.disk import MODELS, Data, Disk, Flush, Names, read_tree, write_tree
from tests.faults.power_kinds import KINDS, Kind, make_checkpoints, make_inputs
from tests.faults.system_calls import Quiet, record, run

_DIFFERS = ("results.json", "release/.metadata")


class PowerCuts:
    """One kind of command: recorded once, then cut again and again."""

    def __init__(self, kind: Kind, inputs: Path, folder: Path, seed: int) -> None:
        self.kind, self.root, self.log, self.rng = kind, folder / "root", folder / "log", random.Random(seed)
        self.inputs, self.found = inputs, Counter[str]()
        shutil.rmtree(folder, ignore_errors=True)
        self.root.mkdir(parents=True)
        self.recording = record(self._processes(), self.root, folder / "strace")
        self.expected = kind.units(self.root)
        self.versions = {name: [content] for name, content in self.expected.items()}
        if kind.trains:
            self.root.rename(folder / "expected")
            self.root.mkdir()
        self.promises = self._promises() if kind.trains else []
        now = self.recording.replayed(())
        for change in self.recording.changes:
            now.apply(change)
            if isinstance(change, Names):
                self.versions = {name: [part] for name, part in kind.parts(now.tree()).items()} | self.versions

    def _processes(self) -> list:
        return [Quiet(process, self.log) for process in self.kind.processes(self.inputs, self.root)]

    def _promises(self) -> list[tuple[int, int]]:
        """(number of changes, iteration) for each time that a checkpoint was on the disk with its name."""
        from megatron_mixcpt.conversion.megatron_iterations import iteration_number, tracked_iteration

        promises, now, done = [], self.recording.replayed(()), 0
        for place, change in enumerate(self.recording.changes):
            if isinstance(change, Flush) and change.node == now.find(["save"]):
                self._put(now)
                for name, content in self.kind.units(self.root).items():
                    versions = self.versions.setdefault(name, [])
                    versions += [content] if content not in versions else []
                named = tracked_iteration(self.root / "save")
                if named is not None and iteration_number(named) > done:
                    done = iteration_number(named)
                    promises.append((place + 1, done))
            now.apply(change)
        return promises

    def _put(self, disk: Disk) -> None:
        """Make the folder what the disk holds."""
        shutil.rmtree(self.root)
        self.root.mkdir()
        write_tree(disk, self.root)

    def cut(self, model: str) -> int:
        """Cut at a random place and look at what is left; returns the place."""
        changes = self.recording.changes
        between = [place for place, change in enumerate(changes) if not isinstance(change, Data)]
        after = self.rng.choice(between) + self.rng.randint(0, 1)
        if self.rng.random() < 0.3:
            after = self.rng.randint(0, len(changes))
        self._put(self.recording.cut(after, model, self.rng))
        self._look(after)
        return after

    def _look(self, after: int) -> None:
        try:
            units = self.kind.units(self.root) | self.kind.parts(read_tree(self.root))
        except Exception as error:
            self.found[f"what is left cannot be read: {error!r}"[:100]] += 1
            return
        for name, content in units.items():
            if content not in self.versions.get(name, []):
                self.found[f"{_kind_of_name(name)} is torn"] += 1
        promised = max((iteration for place, iteration in self.promises if place <= after), default=0)
        if promised and (there := self._iteration()) < promised:
            self.found[f"a flushed checkpoint is not found ({'none' if not there else 'an older one'} is)"] += 1

    def _iteration(self) -> int:
        """The iteration that a resumed run would start from."""
        from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint, iteration_number
        from megatron_mixcpt.errors import CheckpointError

        with contextlib.suppress(CheckpointError):
            choice = choose_checkpoint(self.root / "save")
            return iteration_number(choice.folder) if choice else 0
        return 0

    def resume(self) -> None:
        """Start the command again where the power failed: it must end as if nothing had been."""
        if any(run(self._processes())):
            self.found["the command fails where it is started again"] += 1
            shutil.copy(self.log, self.log.with_name(f"failed-{self.found.total()}.log"))
        elif self.kind.trains:
            from tests.faults.interruptions import compare

            same = functools.partial(compare, self.root / "save", self.root.with_name("expected") / "save")
            self.found["a resumed run ends with other weights"] += any(run([same]))
        elif _comparable(self.kind.units(self.root)) != _comparable(self.expected):
            self.found["the command, started again, ends with other bytes"] += 1

    def lose_all_after_the_end(self) -> None:
        """Nothing may be lost of what a command that has ended has written."""
        for model in MODELS:
            self._put(self.recording.cut(len(self.recording.changes), model, self.rng, shares=[0.0]))
            left = self.kind.units(self.root)
            lost = {_kind_of_name(name) for name, content in self.expected.items() if left.get(name) != content}
            self.found.update(f"{name} is lost after the end" for name in lost)


def _kind_of_name(name: str) -> str:
    """The name without its numbers and digests."""
    if name.startswith("a finished part"):
        return "a finished part"
    if name.startswith("iter_"):
        return "an iteration"
    return name.rpartition("/")[2].rpartition("-")[2] if "/" in name else name


def _comparable(units: dict) -> dict:
    """Without what differs each time: when results were made, and the random number that torch puts into an index."""
    return {
        name: {path: data for path, data in content.items() if path not in _DIFFERS}
        if isinstance(content, dict)
        else content
        for name, content in units.items()
    }


def drill(name: str, kind: Kind, options: argparse.Namespace, inputs: Path) -> bool:
    """All cuts of one kind; prints its row and returns whether nothing was found."""
    cuts = PowerCuts(kind, inputs, options.folder / name.replace(" ", "-"), options.seed)
    for number in range(options.cuts):
        cuts.cut(MODELS[number % len(MODELS)])
    for number in range(options.resumes):
        cuts.cut(MODELS[number % len(MODELS)])
        cuts.resume()
    cuts.lose_all_after_the_end()
    found = "; ".join(f"{what}: {count}" for what, count in sorted(cuts.found.items()) if count) or "nothing"
    num_cuts = options.cuts + options.resumes
    print(f"| {name} | {len(cuts.recording.changes)} | {num_cuts} | {options.resumes} | {found} |", flush=True)
    return found == "nothing"


def main() -> None:
    """Read the command line and run the drill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--resumes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="is kept; what commands print is in it")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import tests.faults.preloaded  # noqa: F401 - once, for all processes

    with tempfile.TemporaryDirectory() as temporary:
        options.folder = (options.folder or Path(temporary)).resolve()
        inputs = options.folder / "inputs"
        if not (inputs / "adapters").exists():
            inputs.mkdir(parents=True, exist_ok=True)
            log = options.folder / "inputs.log"
            steps = (make_inputs, make_checkpoints)
            if any(run([Quiet(functools.partial(step, inputs), log)])[0] for step in steps):
                sys.exit(f"the inputs cannot be made:\n{log.read_text()[-2000:]}")
        print("| kind | changes | cuts | resumed | found |\n|---|---|---|---|---|")
        outcomes = [drill(name, KINDS[name], options, inputs) for name in options.kinds]
    sys.exit(not all(outcomes))


if __name__ == "__main__":
    main()
