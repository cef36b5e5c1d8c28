"""Trainings and scoring with a fault in them: one function of the engine or of torch fails at a chosen call.

    FAULT=forward FAULT_RANK=1 FAULT_FILE=/tmp/came torchrun --nproc-per-node 2 tests/faults/faulty.py \
        pretrain_mixcpt FLAGS...

``FAULT`` names the fault (``FAULTS``), ``FAULT_RANK`` the rank that has it, and ``FAULT_FILE`` a file that is created
when it comes. A run that torchrun has started again has none.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

import functools  # noqa: E402
import importlib  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import pkgutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple  # noqa: E402

import torch  # noqa: E402

# Tool -> the module whose main() it is.
TOOLS = {
    "pretrain_mixcpt": "megatron_mixcpt.training.pretraining.cpt",
    "train_sft": "megatron_mixcpt.training.alignment.sft",
    "train_dpo": "megatron_mixcpt.training.alignment.dpo",
    "score_alignment": "megatron_mixcpt.selection.score_tool",
    "evaluate": "megatron_mixcpt.evaluation.tool",
}


def out_of_memory() -> None:
    """What PyTorch raises where the device's memory is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def bug() -> None:
    """What a defect of ours would raise."""
    raise ZeroDivisionError("a bug")


def kill_a_worker() -> None:
    """What the kernel does to a worker of the data loader where the host's memory is full."""
    kill(next(child for child in multiprocessing.active_children() if child.daemon and not is_writer(child)))


def kill_the_writer() -> None:
    """The same to the process that writes asynchronous checkpoints."""
    kill(next(child for child in multiprocessing.active_children() if is_writer(child)))


def kill_the_rank() -> None:
    """The same to the rank."""
    os.kill(os.getpid(), signal.SIGKILL)


def is_writer(child: Any) -> bool:
    return "Spawn" in type(child).__name__


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)


def hang() -> None:
    """Wait for a peer that is gone, and see no signal, as with NCCL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    while True:
        time.sleep(60.0)


class Fault(NamedTuple):
    """Where it is, and what happens there."""

    place: str
    at_call: int
    """In each process; the first is 1."""
    happens: Callable[[], None] = out_of_memory


_FORWARD = "megatron.core.models.gpt.GPTModel.forward"
FAULTS = {
    "none": Fault("", 0),
    "start": Fault("megatron.training.training.setup_model_and_optimizer", 1),
    "data": Fault("torch.utils.data._utils.fetch._MapDatasetFetcher.fetch", 3),
    "forward": Fault(_FORWARD, 3),
    "backward": Fault("megatron.core.pipeline_parallel.schedules.backward_step", 3),
    "optimizer": Fault("torch.optim.AdamW.step", 2),
    "evaluation": Fault("megatron.training.training.evaluate", 1),
    "save": Fault("megatron.core.dist_checkpointing.strategies.filesystem_async._write_item", 1),
    "exit": Fault("megatron.training.ft_integration.shutdown", 1, bug),
    "bug": Fault(_FORWARD, 3, bug),
    "first-forward": Fault(_FORWARD, 1),
    "peer-hangs": Fault(_FORWARD, 1, bug),
    "hung-peer": Fault("torch.optim.AdamW.step", 2, bug),
    "worker-killed": Fault("torch.optim.AdamW.step", 2, kill_a_worker),
    "writer-killed": Fault("torch.optim.AdamW.step", 4, kill_the_writer),
    "rank-killed": Fault("torch.optim.AdamW.step", 4, kill_the_rank),
    "late-bug": Fault("torch.optim.AdamW.step", 5, bug),
}


def failing(function: Callable, fault: Fault) -> Callable:
    """``function`` with the fault."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*positional: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.at_call:
            Path(os.environ["FAULT_FILE"]).touch()
            fault.happens()
        return function(*positional, **named)

    return wrapped


def put_in_fault() -> None:
    """Break what ``FAULT`` names, on the rank that is to have it, and in the processes that this rank starts."""
    name = os.environ["FAULT"]
    fault = FAULTS[name]
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" or name == "none":
        return
    if os.environ["RANK"] != os.environ["FAULT_RANK"]:
        if name not in ("hung-peer", "peer-hangs"):
            return
        fault = fault._replace(happens=hang)
    owner, attribute = fault.place.rsplit(".", 1)
    found = pkgutil.resolve_name(owner)
    setattr(found, attribute, failing(getattr(found, attribute), fault))


def run(tool: str, argv: list[str]) -> None:
    """What the tool's file does."""
    importlib.import_module(TOOLS[tool]).main(argv)


if "FAULT" in os.environ:
    put_in_fault()  # at the top level: the engine's checkpoint writer is a process that imports this file again

if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
