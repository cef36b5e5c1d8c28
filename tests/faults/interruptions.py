"""One case of the drill: trainings that are interrupted and started again, and what they must end with.

``kill_training.py`` is the command.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from megatron_mixcpt.conversion.megatron_layout import Place
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from tests.distributed.dense_alignment import make_samples
from tests.distributed.tiny_models import build_model
from tests.distributed.tiny_run import flags, make_world
from tests.distributed.tiny_shape import VOCAB_SIZE
from tests.faults.launchers import Forked, Torchrun
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

TP2 = ["--tensor-model-parallel-size", "2", "--use-distributed-optimizer"]
PP2 = ["--pipeline-model-parallel-size", "2"]
CASES = {
    "tp2": ("pretrain_mixcpt", TP2),
    "dp2": ("pretrain_mixcpt", ["--use-distributed-optimizer"]),
    "pp2": ("pretrain_mixcpt", PP2),
    "async": ("pretrain_mixcpt", [*TP2, "--async-save", "--num-workers", "2"]),
    "keep-last": ("pretrain_mixcpt", [*TP2, "--keep-last", "2"]),
    "sft": ("train_sft", TP2),
    "dpo": ("train_dpo", TP2),
}
LAUNCHERS = {"torchrun": Torchrun, "fork": Forked}
MARKER = "MIXCPT_PREEMPTED"
ITERATION, SAVING = re.compile(r"iteration +\d+/"), re.compile("saving checkpoint at")  # as the engine's log has them


class Drill:
    """One case, in one folder."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.case, self.launcher = options.case, LAUNCHERS[options.launcher]
        self.signal = signal.Signals[options.signal]
        self.log, self.marker = folder / f"{options.case}.log", folder / f"{options.case}.preempted"
        self.victims = ["rank 0", "rank 1", "everything"]
        if options.launcher == "torchrun":  # which takes SIGTERM on to its ranks and does not know SIGUSR1
            self.victims = self.victims[:2] if options.signal == "SIGUSR1" else [*self.victims, "launcher"]
        self.interrupted: Counter[str] = Counter()

    def run(self, num_kills: int) -> None:
        """Kill ``num_kills`` times, in as many trainings as that takes; exits at the first difference."""
        expected, save, trainings = self.folder / f"expected-{self.case}", self.folder / f"killed-{self.case}", 0
        if not (expected / "finished").exists():
            shutil.rmtree(expected, ignore_errors=True)
            self.start(expected, interrupted=False)
            (expected / "finished").touch()
        while self.interrupted.total() < num_kills:
            shutil.rmtree(save, ignore_errors=True)
            while self.start(save, interrupted=True):
                pass
            compare(save, expected)
            trainings += 1
            print(f"{self.case}: {self.interrupted.total()} of {num_kills}, and the same weights", flush=True)
        counts = ", ".join(f"{count} {what}" for what, count in sorted(self.interrupted.items()))
        print(f"{self.case}, {self.signal.name}: {counts}; {trainings} trainings, all ended with the same bits")

    def start(self, save: Path, *, interrupted: bool) -> bool:
        """Start the command and interrupt it at a random moment; False where it came to its end before."""
        tool, argv = command(self.folder, self.case, save)
        self.marker.unlink(missing_ok=True)
        training = self.launcher(tool, argv, self.log, {MARKER: str(self.marker)})
        while_saving = random.random() < 0.5
        what, longest_s = (SAVING, 0.1) if while_saving else (ITERATION, 0.5)
        how_often = random.randint(1, 4 if while_saving else 8) if interrupted else None
        while training.poll() is None:
            if how_often and len(what.findall(self.log.read_text(errors="replace"))) >= how_often:
                time.sleep(random.uniform(0.0, longest_s))
                break
            time.sleep(0.005)
        ranks, code = training.ranks(), training.poll()
        if code is not None:
            if code:
                sys.exit(f"failed with {code}, see {self.log}: {tool} {' '.join(argv)}")
            return False
        self.interrupt(training, ranks, while_saving)
        return True

    def interrupt(self, training: Torchrun | Forked, ranks: list[int], while_saving: bool) -> None:
        """Send the signal and wait for the end."""
        victim = random.choice(self.victims)
        training.send(self.signal, victim)
        training.end(ranks)
        log = self.log.read_text(errors="replace")
        where = (ITERATION.findall(log) or ["the start"])[-1].rstrip("/")
        what = f"{victim}, saving" if while_saving else victim
        print(f"  {self.signal.name} to {what} after {where}", flush=True)
        if self.signal != signal.SIGKILL and training.poll() and not self.marker.exists():
            sys.exit(f"ended with {training.poll()}, but not as preempted, see {self.log}")
        self.interrupted[what] += 1


def make_folder(folder: Path) -> None:
    """Put models, a mixture and samples into ``folder``, unless they are there."""
    world = folder / "world"
    if not (world / "sft.jsonl").exists():
        make_world(world)
        build_model("llama", 0).save_pretrained(world / "chat")
        save_tiny_tokenizer(world / "chat", vocab_size=VOCAB_SIZE)
        make_samples(world)


def command(folder: Path, case: str, save: Path, iterations: int = 24, interval: int = 2) -> tuple[str, list[str]]:
    """What a user would type, and type again: the tool and its flags. ``interval`` is that of the checkpoints; of SFT
    and DPO, which have three batches an epoch, ``iterations`` must be a multiple of three."""
    tool, layout = CASES[case]
    world = folder / "world"
    if tool == "pretrain_mixcpt":
        argv = flags(world, iterations=iterations)
    else:
        kind = tool.removeprefix("train_")
        argv = [*("--hf-model", str(world / "chat"), f"--{kind}", str(world / f"{kind}.jsonl"))]
        argv += ["--chat-template", "zephyr", "--seq-length", "256", "--global-batch-size", "2"]
        argv += ["--epochs", str(iterations // 3), "--lr", "1e-3", "--log-interval", "1", "--num-workers", "0"]
    return tool, [*argv, "--save", str(save), "--save-interval", str(interval), *layout]


def compare(folder: Path, expected_folder: Path) -> None:
    """Exits unless both last checkpoints are of the same iteration and have the same bits."""
    actual, expected = MegatronCheckpoint(folder), MegatronCheckpoint(expected_folder)
    if actual.iteration != expected.iteration:
        sys.exit(f"{folder} ends at iteration {actual.iteration}, not {expected.iteration}")
    for key in expected.model_tensors():
        if not torch.equal(actual.read(Place(key)), expected.read(Place(key))):
            sys.exit(f"{key} differs from the undisturbed run's")
