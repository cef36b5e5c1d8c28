"""Preemption: SIGTERM and SIGUSR1 end training after the running step, with a checkpoint and exit code 75.

A validation is broken off after its running step: it can take longer than a scheduler waits. Its figures are not shown.

Slurm sends SIGTERM before it takes a node back, or the signal of ``--signal`` some time before; Kubernetes SIGTERM. The
engine's own handler (megatron/training/dist_signal_handler.py) knows one signal and waits for the device in every step;
this one asks around in the background, and a step later all ranks know.
"""

import contextlib
import functools
import inspect
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_signal_handler, get_timers
from megatron.training.dist_signal_handler import DistributedSignalHandler

from megatron_mixcpt.terminal import say
from megatron_mixcpt.torchrun_report import explained
from megatron_mixcpt.training.engine.patches import Change

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# Names a file where the first rank writes the signal that ended it: torchrun turns every exit code into 1.
MARKER_VARIABLE = "MIXCPT_PREEMPTED"


class PreemptionHandler(DistributedSignalHandler):
    """The engine's signal handler for all of ``SIGNALS``, agreed on by all ranks without waiting for the device."""

    def __init__(self, sig: signal.Signals = signal.SIGTERM) -> None:
        super().__init__(sig)
        self.agreed: int = 0
        """The signal's number, once all ranks know of it."""
        self._received = 0
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "PreemptionHandler":
        self.released = False
        self._original = {number: signal.signal(number, self._receive) for number in (*SIGNALS, self.sig)}
        return self

    def release(self) -> bool:
        """Put back what was there; False where that was done before."""
        released, self.released = self.released, True
        if not released:
            for number, handler in self._original.items():
                signal.signal(number, handler)
        return not released

    def signals_received(self) -> list[bool]:
        """Whether any rank had received a signal when this was called last. All ranks must call, once in a step."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo")  # on the host: never behind the device's work
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            self.agreed = int(flag)
        flag = torch.tensor([self._received], dtype=torch.int32, device="cpu")
        self._pending = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return [self.agreed > 0]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number


def preemption_handling() -> Change:
    """Lets the engine use :class:`PreemptionHandler`; it takes effect when the engine's arguments are set."""
    return Change("megatron.training.global_vars.DistributedSignalHandler", __name__, lambda _: PreemptionHandler)


class _BrokenOffError(Exception):
    """A validation was broken off by a signal, on all ranks before the same step."""


def validation_broken_off() -> list[Change]:
    """Changes to the engine: a signal ends a validation after the running step, not after the last."""
    return [
        Change("megatron.training.training.get_forward_backward_func", __name__, _asking_before_each_step),
        Change("megatron.training.training.evaluate_and_print_results", __name__, _going_on_to_the_checkpoint),
    ]


def _asking_before_each_step(get_forward_backward_func: Callable) -> Callable:
    @functools.wraps(get_forward_backward_func)
    def get(*positional: Any, **named: Any) -> Callable:
        run_step = get_forward_backward_func(*positional, **named)

        @functools.wraps(run_step)
        def asked(*rest: Any, **options: Any) -> Any:
            is_validation = options.get("forward_only") and not options.get("collect_non_loss_data")  # of one rank
            if is_validation and any(get_signal_handler().signals_received()):
                raise _BrokenOffError
            return run_step(*rest, **options)

        return asked

    return get


def _going_on_to_the_checkpoint(evaluate_and_print_results: Callable) -> Callable:
    signature = inspect.signature(evaluate_and_print_results)

    @functools.wraps(evaluate_and_print_results)
    def evaluate(*positional: Any, **named: Any) -> None:
        call, rerun = signature.bind(*positional, **named).arguments, get_rerun_state_machine()
        mode = rerun.get_mode()
        try:
            evaluate_and_print_results(*positional, **named)
        except _BrokenOffError:  # what the engine's evaluate() would put back
            for module in call["model"]:
                module.train()
            rerun.set_mode(mode)
            call["config"].timers = get_timers()
            get_timers()("evaluate").stop()

    return evaluate


@contextlib.contextmanager
def exits_as_preempted(rank: int, save: str | None) -> Iterator[None]:
    """Around the engine's ``pretrain()``: an exit after a signal gets ``EXIT_CODE``, and the first rank says so.

    Args:
        rank: of this process.
        save: the checkpoint folder, or None where nothing is saved.
    """
    handler = get_signal_handler()
    try:
        yield
    except SystemExit as exit:
        agreed = handler.agreed
        if not agreed or exit.code:
            raise
        if rank == 0:
            kept = f"a checkpoint is in {save}" if save else "nothing is saved without --save"
            name = signal.Signals(agreed).name
            say(f"preempted by {name}: {kept}; start the same command again to go on")
            if marker := os.environ.get(MARKER_VARIABLE):
                Path(marker).write_text(name)
        explained()
        raise SystemExit(EXIT_CODE) from exit
