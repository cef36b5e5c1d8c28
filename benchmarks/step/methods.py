"""Step time of Mix-CPT beside plain continual pre-training, in one run of the real trainer, on a CPU.

    python benchmarks/step/methods.py                                     # TP1, TP2 and PP2, minutes
    python benchmarks/step/methods.py --layouts tp1 --profile             # and where the time goes

One process group trains one model; each round takes one training step by every method in turn, so that a slow moment of
the machine hits them alike, and the ratios are medians over rounds of steps beside one another, of wall time and of all
ranks' processor time (which waiting for other programs does not count in):

engine  the engine's own next-token loss, no teacher: Megatron's plain pre-training
none    `--distillation none`
half    `--distillation-fraction 0.5`: every second sample is distilled
lssd    Mix-CPT

A step is the engine's `train_step`: forward and backward of all microbatches, gradient reduction and AdamW, timed on
all ranks between barriers. All cores are used: each rank has its share of them as threads. The first round warms up.
"""

import argparse
import contextlib
import copy
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.step.world import make_world  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402

LAYOUTS = {
    "tp1": (1, []),
    "tp2": (2, ["--tensor-model-parallel-size", "2", "--sequence-parallel"]),
    "pp2": (2, ["--pipeline-model-parallel-size", "2"]),
}


@dataclass(frozen=True)
class Method:
    """What a step is taken with."""

    fraction: float = 0.0
    """Share of the samples that are distilled."""
    engine_loss: bool = False
    """The engine's cross-entropy in place of ours."""
    chunk_tokens: int = 0
    """Tokens whose logits are held at a time; 0: all."""


METHODS = {"engine": Method(engine_loss=True), "none": Method(), "half": Method(0.5), "lssd": Method(1.0)}


def main() -> None:
    """Parse the flags and print one line per layout and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=49_152)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--microbatches", type=int, default=4, help="of one sequence each")
    parser.add_argument("--profile", action="store_true", help="also print processor time by operation on rank 0")
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "ignore"
    cores = len(os.sched_getaffinity(0))
    print(
        f"hidden {options.hidden_size}, {options.num_layers} layers, vocabulary {options.vocab_size:,}, bfloat16, "
        f"{options.microbatches} microbatches of {options.seq_length} tokens, {cores} cores, torch {torch.__version__}"
    )
    for layout in options.layouts:
        with tempfile.TemporaryDirectory() as folder:
            measure_layout(layout, options, Path(folder), cores)


def measure_layout(layout: str, options: argparse.Namespace, folder: Path, cores: int) -> None:
    """Train at one layout and print what came out."""
    world_size, flags = LAYOUTS[layout]
    shape = {"hidden_size": options.hidden_size, "num_layers": options.num_layers, "vocab_size": options.vocab_size}
    model, mixture = make_world(folder, **shape)
    argv = [
        *("--hf-model", str(model), "--mixture", str(mixture), *flags, "--bf16"),
        *("--seq-length", str(options.seq_length), "--global-batch-size", str(options.microbatches)),
        *(
            "--train-iters",
            str((options.rounds + 1 + options.profile) * len(METHODS)),
            "--log-interval",
            "1000",
            "--num-workers",
            "0",
        ),
    ]
    result = folder / "times.json"
    call = argv, cores // world_size, options.rounds, options.profile, str(result)
    run_distributed(train_rank, world_size, *call, cpu_emulation=True, timeout_s=1800.0)
    times = json.loads(result.read_text())
    for name, steps in times.items():
        wall = statistics.median(wall_s for wall_s, _ in steps)
        to_engine, to_none = (ratio_text(steps, times[other]) for other in ("engine", "none"))
        print(
            f"{layout} {name:7} {wall:6.3f} s a step | to the engine's loss {to_engine} | to none {to_none}", flush=True
        )


def ratio_text(steps: list[tuple[float, float]], others: list[tuple[float, float]]) -> str:
    """Medians of the ratios of wall time, with quartiles, and of processor time."""
    wall, cpu = (sorted(mine[i] / other[i] for mine, other in zip(steps, others, strict=True)) for i in (0, 1))
    spread = f"({wall[len(wall) // 4]:.3f} to {wall[-1 - len(wall) // 4]:.3f})"
    return f"{statistics.median(wall):.3f} {spread} processor {statistics.median(cpu):.3f}"


def train_rank(argv: list[str], num_threads: int, num_rounds: int, profile: bool, result: str) -> None:
    """On every rank: train with the methods in turn; rank 0 writes the times, without first and profiled round."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the engine lists its arguments
    torch.set_num_threads(num_threads)
    steps = train_in_turn(argv, METHODS, between_barriers, num_rounds + 1 if profile else None)
    if dist.get_rank() == 0:
        steps.print_profiles()
        times = {name: taken[1 : num_rounds + 1] for name, taken in steps.taken.items()}
        Path(result).write_text(json.dumps(times))


def train_in_turn(
    argv: list[str], methods: Mapping[str, Method], measure: Callable, profiled_round: int | None = None
) -> "MethodsInTurn":
    """Run the trainer, its steps by these methods in turn; see :class:`MethodsInTurn`, which is returned."""
    from megatron.training import training

    from megatron_mixcpt.training import batch
    from megatron_mixcpt.training.pretraining import cpt

    steps = MethodsInTurn(training.train_step, methods, measure, profiled_round)
    # Every second sample rather than a random half: each batch then has as many.
    batch.is_distilled = lambda index, *, fraction, seed: (
        (index % 2 == 0) if steps.fraction == 0.5 else (torch.full_like(index, steps.fraction, dtype=torch.bool))
    )
    training.train_step = steps
    cpt.main(argv)
    return steps


def between_barriers(step: Callable) -> tuple[object, tuple[float, float]]:
    """What a step returns; wall seconds until the last rank is done, and all ranks' processor seconds."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    result = step()
    taken = torch.tensor(time.process_time() - cpu, dtype=torch.float64)
    dist.barrier()
    wall = time.perf_counter() - wall
    dist.all_reduce(taken)
    return result, (wall, taken.item())


class MethodsInTurn:
    """The engine's training step, by another method each time, and what each took.

    Args:
        train_step: the engine's.
        methods: by name, in the order in which they take their turns.
        measure: calls a step and returns its result and what it took.
        profiled_round: the round whose steps are recorded, counted from 0; None: none.
    """

    def __init__(
        self,
        train_step: Callable,
        methods: Mapping[str, Method],
        measure: Callable,
        profiled_round: int | None,
    ) -> None:
        self.train_step = train_step
        functools.update_wrapper(self, train_step)  # whoever wraps it next reads its signature
        self.methods = methods
        self.measure = measure
        self.taken: dict[str, list] = {name: [] for name in methods}
        self.profiles: dict[str, torch.profiler.profile] = {}
        self.profiled_round = profiled_round
        self.fraction = 0.0
        """Share of the samples of the running step that are distilled."""
        self._trained_head = None

    def __call__(self, *args, p2p_communicator=None, **kwargs):
        """One step by the next method."""
        name = min(self.taken, key=lambda name: len(self.taken[name]))
        method = self.methods[name]
        self.fraction = method.fraction
        if p2p_communicator is not None and not method.fraction:
            p2p_communicator = plain_communicator(p2p_communicator)
        self._set_head(args[2], method)
        profile = len(self.taken[name]) == self.profiled_round
        with torch.profiler.profile() if profile else contextlib.nullcontext() as recorded:
            step = functools.partial(self.train_step, *args, p2p_communicator=p2p_communicator, **kwargs)
            result, taken = self.measure(step)
            self.taken[name].append(taken)
        if profile:
            self.profiles[name] = recorded
        return result

    def _set_head(self, chunks: list, method: Method) -> None:
        """The engine's loss on the last stage for its method, ours for the others."""
        from megatron.core.utils import unwrap_model

        model = unwrap_model(chunks[-1])
        self._trained_head = self._trained_head or model.head
        ours = replace(self._trained_head, chunk_tokens=method.chunk_tokens)
        model.head = engine_head if method.engine_loss else ours

    def print_profiles(self, num_rows: int = 14) -> None:
        """Self time on the processor by operation, in ms, one column per method."""
        tables = {
            name: {event.key: event.self_cpu_time_total / 1e3 for event in profile.key_averages()}
            for name, profile in self.profiles.items()
        }
        if not tables:
            return
        keys = sorted(tables["lssd"], key=tables["lssd"].get, reverse=True)[:num_rows]
        print(f"{'self time, ms':40}" + "".join(f"{name:>10}" for name in tables), file=sys.stderr)
        for key in keys:
            row = "".join(f"{table.get(key, 0.0):10.0f}" for table in tables.values())
            print(f"{key[:39]:40}{row}", file=sys.stderr)
        total = "".join(f"{sum(table.values()):10.0f}" for table in tables.values())
        print(f"{'all operations':40}{total}", file=sys.stderr)


def engine_head(student, teacher, targets) -> tuple:
    """The engine's own loss, in the form of ours."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_mixcpt.losses.fused_linear import SummedMixCPTLoss
    from megatron_mixcpt.losses.lssd import MixCPTLoss

    labels, loss_mask = targets.labels.transpose(0, 1).contiguous(), targets.loss_mask.transpose(0, 1)
    loss = vocab_parallel_cross_entropy(student.products(), labels)
    nothing = torch.zeros_like(loss.detach())
    tokens = MixCPTLoss(loss.detach(), loss.detach(), *[nothing] * (len(MixCPTLoss._fields) - 2))
    return SummedMixCPTLoss((loss * loss_mask).sum(), tokens)


@functools.cache
def plain_communicator(communicator):
    """The engine's own between stages, which a run without a teacher has."""
    from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

    config = copy.copy(communicator.config)
    config.variable_seq_lengths = False
    return P2PCommunicator(communicator.pp_group, config)


if __name__ == "__main__":
    main()
