"""Repairs of the engine as its wheel ships it: what fails without a source checkout, Transformer Engine or Apex.

Each repair says what goes wrong without it and does nothing where nothing does. An entry script calls
`repair_engine()` once, before `pretrain()`.
"""

import queue
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from megatron.core import optimizer as engine_optimizer
from megatron.core.datasets import utils as engine_datasets
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.num_microbatches_calculator import get_num_microbatches
from megatron.core.optimizer import distrib_optimizer
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.training import get_args, training


def repair_engine() -> None:
    """Apply every repair of this module."""
    skip_helper_compilation()
    make_distributed_optimizer_resumable()
    skip_steps_on_every_rank()
    if not get_args().async_save:
        collect_results_of_saves_here()


def skip_helper_compilation() -> None:
    """Keep the engine from compiling its C++ dataset helper when that can be imported.

    `initialize_megatron()` runs `make` in the engine's dataset folder and exits when that fails. The wheel holds the
    compiled helper but no Makefile, so that it always fails; a source checkout holds a Makefile and no helper yet.
    """
    if find_spec("megatron.core.datasets.helpers_cpp") is not None:
        engine_datasets.compile_helpers = lambda: None


def make_distributed_optimizer_resumable() -> None:
    """Let the distributed optimizer load checkpoints when its Adam is PyTorch's (no Transformer Engine, no Apex)."""
    if not distrib_optimizer.HAVE_APEX_OR_TE:
        engine_optimizer.DistributedOptimizer = ResumableDistributedOptimizer


def skip_steps_on_every_rank() -> None:
    """Let ``--iterations-to-skip`` pass over a batch on every rank.

    The engine's own passes over it on the first rank of each tensor parallel group, which hands the others its batch;
    here every rank reads for itself, and the others would train on the skipped batch while the first is one further.
    """
    training.dummy_train_step = _pass_over_a_batch


def _pass_over_a_batch(data_iterator: Iterator | list[Iterator]) -> None:
    """Take a global batch from ``data_iterator``, one for each chunk of an interleaved pipeline."""
    rerun_state_machine = get_rerun_state_machine()
    while rerun_state_machine.should_run_forward_backward(data_iterator):
        for iterator in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
            for _ in range(get_num_microbatches()):
                next(iterator)


def collect_results_of_saves_here() -> None:
    """Let a synchronous save hand its results over in a queue of this process.

    The engine starts a server process for a queue on every rank, even where the writer is the rank itself: a copy of
    the interpreter that takes seconds to start and stays behind, asleep, where the rank is killed.
    """
    filesystem_async._results_queue = queue.Queue()


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
