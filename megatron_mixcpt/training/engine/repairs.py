"""Repairs of the engine as its wheel ships it: what fails without a source checkout, Transformer Engine or Apex.

Each repair says what goes wrong without it, and none is made where nothing does.
"""

import argparse
import functools
import queue
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.optimizer import distrib_optimizer
from megatron.core.rerun_state_machine import get_rerun_state_machine

from megatron_mixcpt.conversion.megatron_for_engine import supply_missing_extra_states
from megatron_mixcpt.training.engine.patches import Change


def repairs(args: argparse.Namespace) -> list[Change]:
    """The repairs that a run with these arguments of the engine needs on this machine."""
    changes: dict[str, Any] = {"megatron.training.training.dummy_train_step": _pass_over_a_batch}
    if find_spec("megatron.core.datasets.helpers_cpp") is not None:
        changes["megatron.core.datasets.utils.compile_helpers"] = _compile_nothing
    if not distrib_optimizer.HAVE_APEX_OR_TE:
        changes["megatron.core.optimizer.DistributedOptimizer"] = ResumableDistributedOptimizer
    if not args.async_save:
        # The engine starts a server process for a queue on every rank, even where the writer is the rank itself: a
        # copy of the interpreter that takes seconds to start and stays behind, asleep, where the rank is killed.
        changes["megatron.core.dist_checkpointing.strategies.filesystem_async._results_queue"] = queue.Queue()
    loads = Change("megatron.core.dist_checkpointing.load", __name__, _supplying_extra_states)
    return [loads, *(Change(name, __name__, _replacing_by(value)) for name, value in changes.items())]


def _replacing_by(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def _supplying_extra_states(load: Callable[..., Any]) -> Callable[..., Any]:
    """The engine's loading, of checkpoints that layers of the other kind saved too."""

    @functools.wraps(load)
    def loading(sharded_state_dict: dict[str, Any], checkpoint_dir: str, *args: Any, **kwargs: Any) -> Any:
        supply_missing_extra_states(sharded_state_dict, Path(checkpoint_dir))
        return load(sharded_state_dict, checkpoint_dir, *args, **kwargs)

    return loading


def _compile_nothing() -> None:
    """Replaces the engine's compilation of its C++ dataset helper where the helper can be imported.

    ``initialize_megatron()`` runs ``make`` in the engine's dataset folder and exits when that fails. The wheel holds
    the compiled helper but no Makefile, so that it always fails; a source checkout holds a Makefile and no helper yet.
    """


def _pass_over_a_batch(data_iterator: Iterator | list[Iterator]) -> None:
    """Take a global batch from ``data_iterator``, one for each chunk of an interleaved pipeline, on every rank.

    The engine's own passes over it on the first rank of each tensor parallel group, which hands the others its batch;
    here every rank reads for itself, and the others would train on the skipped batch while the first is one further.
    """
    rerun_state_machine = get_rerun_state_machine()
    while rerun_state_machine.should_run_forward_backward(data_iterator):
        for iterator in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
            for _ in range(get_num_microbatches()):
                next(iterator)


class ResumableDistributedOptimizer(distrib_optimizer.DistributedOptimizer):
    """The engine's distributed optimizer with PyTorch's Adam, whose step count is a tensor in each parameter's state.

    The engine's own (megatron/core/optimizer/distrib_optimizer.py) counts on Apex's Adam, which keeps it in the
    parameter group; each method says what goes wrong otherwise.
    """

    def state_dict(self) -> dict:
        """The engine reads the step count from a state that is made on the first step only: an AssertionError."""
        _initialize_adam_state(self.optimizer)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """The engine gives one step tensor to all parameters: Adam would advance it once for each of them."""
        super().load_state_dict(state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    def _set_main_param_and_optimizer_states(self, model_param: torch.Tensor, tensors: dict) -> None:
        """The engine looks for a step among the reshardable tensors, where it leaves it out itself: a KeyError."""
        super()._set_main_param_and_optimizer_states(model_param, {"step": None, **tensors})


def _initialize_adam_state(adam: torch.optim.Adam | torch.optim.AdamW) -> None:
    """Give every parameter that has no state the one it has before its first step, on its device."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device="cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
