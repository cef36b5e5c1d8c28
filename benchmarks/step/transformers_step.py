"""A Mix-CPT step of the trainer beside the one that a user would write with transformers, on the same CPU.

    python benchmarks/step/transformers_step.py

The user's loop: two models, the teacher without gradients, the loss as the paper writes it on complete logits, AdamW,
clipped gradients. *autocast* keeps float32 weights and computes in bfloat16, which is the precision of the trainer
(bfloat16 weights with float32 copies in the optimizer); *bfloat16* has no float32 copy of anything, which is cheaper
and less exact. Each runs in a separate process, in turn, with all cores as threads; memory is the process's peak.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.loss.measure import peak_memory  # noqa: E402
from benchmarks.step.world import make_world, training_argv  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402

ALPHA = 0.8


def main() -> None:
    """Parse the flags and print one line per program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="+", default=["ours", "autocast", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="of each program in each round, after one to warm up")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=49_152)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--microbatches", type=int, default=4, help="of one sequence each")
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    shape = {"hidden_size": options.hidden_size, "num_layers": options.num_layers, "vocab_size": options.vocab_size}
    results: dict[str, list[dict]] = {name: [] for name in options.programs}
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), **shape)
        for _ in range(options.rounds):
            for name in results:
                results[name].append(run_program(name, world, options, Path(folder) / "result.json"))
    for name, runs in results.items():
        wall, cpu = (sorted(step[i] for run in runs for step in run["seconds"]) for i in (0, 1))
        print(
            f"{name:9} {statistics.median(wall):6.2f} s a step ({wall[0]:.2f} to {wall[-1]:.2f}) | "
            f"processor {statistics.median(cpu):6.2f} s ({cpu[0]:.2f} to {cpu[-1]:.2f}) | "
            f"peak {max(run['peak'] for run in runs) / 2**20:,.0f} MiB",
            flush=True,
        )


def run_program(name: str, world: tuple[Path, Path], options: argparse.Namespace, result: Path) -> dict:
    """Run one of the programs in a separate process."""
    call = name, *(str(path) for path in world), vars(options), len(os.sched_getaffinity(0)), str(result)
    run_distributed(run_rank, 1, *call, cpu_emulation=name == "ours", timeout_s=1800.0)
    return json.loads(result.read_text())


def run_rank(name: str, model: str, mixture: str, options: dict, num_threads: int, result: str) -> None:
    """In the process: train, and write the seconds of each step after the first and the peak memory in bytes."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the engine lists its arguments
    torch.set_num_threads(num_threads)
    steps = options["steps"] + 1
    if name == "ours":
        seconds = train_ours(model, mixture, options, steps)
    else:
        seconds = train_with_transformers(model, options, steps, autocast=name == "autocast")
    Path(result).write_text(json.dumps({"seconds": seconds[1:], "peak": peak_memory()}))


def train_ours(model: str, mixture: str, options: dict, steps: int) -> list[tuple[float, float]]:
    """Wall and processor seconds of each of the engine's training steps."""
    from megatron.training import training

    from megatron_mixcpt.training.pretraining import cpt

    seconds: list[tuple[float, float]] = []
    training.train_step = timed(training.train_step, seconds)
    cpt.main(training_argv(model, mixture, options, steps))
    return seconds


def timed(step: Callable, seconds: list[tuple[float, float]]) -> Callable:
    """``step``, adding what each call takes to ``seconds``, on the wall clock and in processor time."""

    @functools.wraps(step)  # whoever wraps it next reads its signature
    def call(*args, **kwargs):
        wall, cpu = time.perf_counter(), time.process_time()
        result = step(*args, **kwargs)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    return call


def train_with_transformers(model: str, options: dict, steps: int, *, autocast: bool) -> list[tuple[float, float]]:
    """Wall and processor seconds of each step of a loop written down in ten lines."""
    step = transformers_step(model, options, autocast=autocast)
    seconds: list[tuple[float, float]] = []
    for _ in range(steps):
        timed(step, seconds)()
    return seconds


def transformers_step(model: str, options: dict, *, autocast: bool, device: str = "cpu") -> Callable[[], None]:
    """A step of that loop, on the same batch each time; ``options`` has the sizes of the batch and the vocabulary."""
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if autocast else torch.bfloat16
    student = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).train()
    teacher = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-5, weight_decay=0.01)
    shape = (options["microbatches"], options.get("micro_batch_size", 1), options["seq_length"] + 1)
    tokens = torch.randint(0, options["vocab_size"], shape, generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        for rows in tokens:
            with torch.no_grad():
                teacher_logits = teacher(rows[:, :-1]).logits
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                logits = student(rows[:, :-1]).logits
            (mixcpt_loss(logits, teacher_logits, rows[:, 1:]) / len(tokens)).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def mixcpt_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Eq. 1 and 4 to 7, as written, on complete logits [b, s, v]; the mean over the tokens."""
    label, top = labels.unsqueeze(-1), teacher.argmax(-1, keepdim=True)
    label_value, top_value = teacher.gather(-1, label), teacher.gather(-1, top)
    swapped = teacher.scatter(-1, top, label_value).scatter(-1, label, top_value)
    log_p, log_q = log_softmax(student.float(), -1), log_softmax(swapped.float(), -1)
    ntp = -log_p.gather(-1, label).squeeze(-1)
    lssd = (log_p.exp() * (log_p - log_q)).sum(-1)
    return (ALPHA * ntp + (1 - ALPHA) * lssd).mean()


if __name__ == "__main__":
    main()
