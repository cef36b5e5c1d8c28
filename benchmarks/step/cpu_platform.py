"""What share of a training step the CPU platform's stand-ins take: Megatron without a GPU runs through them.

    python benchmarks/step/cpu_platform.py

Trains as the step benchmarks do, under Python's profiler, and adds up the time that functions of ``cpu_emulation.py``
spend in its own code. The profiler slows down Python calls and no kernel, so the true share is smaller.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.step.world import make_world, training_argv  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402


def main() -> None:
    """Parse the flags and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="after one to warm up")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--vocab-size", type=int, default=49_152)
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--microbatches", type=int, default=2, help="of one sequence each")
    options = vars(parser.parse_args())
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        shape = {name: options[name] for name in ("hidden_size", "num_layers", "vocab_size")}
        world = [str(path) for path in make_world(Path(folder), **shape)]
        result = Path(folder) / "result.json"
        run_distributed(train, 1, *world, options, str(result), cpu_emulation=True, timeout_s=1800.0)
        whole, ours, calls = json.loads(result.read_text())
    print(
        f"{whole / options['steps']:.2f} s a step; cpu_emulation.py {calls / options['steps']:,.0f} calls a step, ",
        end="",
    )
    print(f"{ours / options['steps'] * 1e3:.1f} ms, {ours / whole:.2%} of the step")


def train(model: str, mixture: str, options: dict, result: str) -> None:
    """In the process: profile the steps after the first; write their seconds, the platform's, and its calls."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the engine lists its arguments
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    from megatron.training import training

    from megatron_mixcpt.training.pretraining import cpt

    profile, steps, train_step = cProfile.Profile(), [], training.train_step

    def step(*args, **kwargs):
        steps.append(None)
        return profile.runcall(train_step, *args, **kwargs) if len(steps) > 1 else train_step(*args, **kwargs)

    training.train_step = step
    cpt.main(training_argv(model, mixture, options, options["steps"] + 1))
    stats = pstats.Stats(profile)
    platform = [entry for (file, _, _), entry in stats.stats.items() if file.endswith("cpu_emulation.py")]
    calls, seconds = sum(entry[1] for entry in platform), sum(entry[2] for entry in platform)
    Path(result).write_text(json.dumps([stats.total_tt, seconds, calls]))


if __name__ == "__main__":
    main()
