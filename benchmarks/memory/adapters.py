"""What adapters take beside full training: bytes of weights, gradients and optimizer state that a rank really holds.

    OMP_NUM_THREADS=1 python benchmarks/memory/adapters.py

Tiny runs of the real trainer on CPU ranks, as in measured.py beside this file. Counted after the first step are the
tensors that are there: parameters of the student and of the teacher, the engine's gradient buffers, and the tensors of
the optimizer that are not the model's own. Beside each is what the plan says of it, of the rank that differs most.
"""

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.memory.measured import GLOBAL_BATCH_SIZE, SEQ_LENGTH, flags, make_world  # noqa: E402
from megatron_mixcpt.flags import settings_from  # noqa: E402
from megatron_mixcpt.planning.layout import Layout  # noqa: E402
from megatron_mixcpt.planning.memory import plan_memory  # noqa: E402
from megatron_mixcpt.planning.shapes import model_shape  # noqa: E402
from megatron_mixcpt.testing import run_distributed  # noqa: E402

RANK = 8
BF16 = {"bf16": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP1": (1, BF16),
    "TP2, sequence parallel": (2, BF16 | {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    "PP2": (2, BF16 | {"pipeline_model_parallel_size": 2}),
    "DP2, sharded optimizer": (2, BF16 | {"use_distributed_optimizer": True}),
}
KINDS = ("weights", "gradients", "optimizer")


def planned(world: Path, name: str, adapters: dict[str, Any]) -> list[dict[str, int]]:
    """The plan's bytes of each rank, by kind."""
    num_ranks, settings = LAYOUTS[name]
    shape = {"seq_length": SEQ_LENGTH, "global_batch_size": GLOBAL_BATCH_SIZE, "num_gpus": num_ranks}
    cpu = {"transformer_impl": "local", "gradient_accumulation_fusion": False}
    layout = settings_from(shape | cpu | settings | adapters, Layout)
    stages = plan_memory(model_shape(str(world / "llama")), layout)
    kinds = [{"weights": s.student + s.teacher, "gradients": s.gradients, "optimizer": s.optimizer} for s in stages]
    return [stage for stage in kinds for _ in range(num_ranks // len(stages))]


def measured(world: Path, name: str, adapters: dict[str, Any]) -> list[dict[str, int]]:
    """What each rank held after the first step, in bytes, by kind."""
    num_ranks, settings = LAYOUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = flags(world, "llama", settings | adapters), folder
        run_distributed(train_and_write_bytes, num_ranks, *arguments, cpu_emulation=True, timeout_s=240)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_ranks)]


def train_and_write_bytes(argv: list[str], folder: str) -> None:
    """On each rank: train, and leave what it holds in ``folder``."""
    import torch.distributed as dist
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from megatron_mixcpt.training.pretraining.cpt import main

    def write(optimizer: Any, *_: Any) -> None:
        Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(held_bytes(optimizer)))

    sys.stdout = open(os.devnull, "w")  # the table has the terminal to itself
    logging.disable()
    register_optimizer_step_post_hook(write)
    main(argv)


def held_bytes(optimizer: Any) -> dict[str, int]:
    """Bytes of this process's models, of their gradient buffers and of an optimizer, by kind."""
    from megatron.core.distributed import DistributedDataParallel

    from megatron_mixcpt.distillation.wrapper import StudentTeacherModel

    wrappers = [thing for thing in gc.get_objects() if isinstance(thing, StudentTeacherModel)]
    models = [model for wrapper in wrappers for model in (wrapper, wrapper.teacher) if model is not None]
    weights = {parameter.data_ptr(): parameter for model in models for parameter in model.parameters()}
    engines = [thing for thing in gc.get_objects() if isinstance(thing, DistributedDataParallel)]
    gradients = [buffer.grad_data for engine in engines for buffer in engine.buffers]
    own = [master for group in optimizer.param_groups for master in group["params"]]
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    masters = [master for master in own if master.data_ptr() not in weights]
    return {"weights": total(weights.values()), "gradients": total(gradients), "optimizer": total(moments + masters)}


def total(tensors: Iterable[Any]) -> int:
    """Bytes of tensors."""
    return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)


def main() -> None:
    """Print a row for each layout and kind of training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    options = parser.parse_args()
    columns = " | ".join(f"{kind}, KB a rank (planned)" for kind in KINDS)
    print(f"| layout | trained | {columns} |\n|---|---|{'---|' * len(KINDS)}")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder))
        trainings = {"model": {}, f"adapters of rank {RANK}": {"lora_rank": RANK}}
        trainings["adapters, separate teacher"] = {"lora_rank": RANK, "teacher": str(world / "llama")}
        for name in options.layouts:
            for training, adapters in trainings.items():
                pairs = list(zip(measured(world, name, adapters), planned(world, name, adapters), strict=True))
                real, plan = max(pairs, key=lambda pair: sum(abs(pair[0][kind] - pair[1][kind]) for kind in KINDS))
                cells = " | ".join(f"{real[kind] / 1e3:.1f} ({plan[kind] / 1e3:.1f})" for kind in KINDS)
                print(f"| {name} | {training} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
