"""Repairs of the engine as its wheel ships it: what fails without a source checkout, Transformer Engine or Apex.

Each repair says what goes wrong without it and does nothing where nothing does. An entry script calls
`repair_engine()` once, before `pretrain()`.
"""

from importlib.util import find_spec

import torch
from megatron.core import optimizer as engine_optimizer
from megatron.core.datasets import utils as engine_datasets


def repair_engine() -> None:
    """Apply every repair of this module."""
    skip_helper_compilation()
    make_adamw_resumable()


def skip_helper_compilation() -> None:
    """Keep the engine from compiling its C++ dataset helper when that can be imported.

    `initialize_megatron()` runs `make` in the engine's dataset folder and exits when that fails. The wheel holds the
    compiled helper but no Makefile, so that it always fails; a source checkout holds a Makefile and no helper yet.
    """
    if find_spec("megatron.core.datasets.helpers_cpp") is not None:
        engine_datasets.compile_helpers = lambda: None


def make_adamw_resumable() -> None:
    """Let the distributed optimizer load a checkpoint when its Adam is PyTorch's (no Transformer Engine, no Apex)."""
    if engine_optimizer.Adam is torch.optim.AdamW:
        engine_optimizer.Adam = ResumableAdamW


class ResumableAdamW(torch.optim.AdamW):
    """AdamW whose state exists from the start and whose parameters each keep their own step count.

    The engine's `DistributedOptimizer.state_dict` (megatron/core/optimizer/distrib_optimizer.py) reads the step count
    from the state, which AdamW makes on the first step only, so that loading fails with a bare AssertionError; and its
    `load_state_dict` hands one step tensor to all parameters, which AdamW would then advance once for each of them.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.register_state_dict_pre_hook(_initialize_state)
        self.register_load_state_dict_post_hook(_separate_steps)


def _initialize_state(adamw: torch.optim.AdamW) -> None:
    """Give every parameter that has none the state before the first step; on the parameter's device."""
    for group in adamw.param_groups:
        for parameter in group["params"]:
            if not adamw.state[parameter]:
                adamw.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device="cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def _separate_steps(adamw: torch.optim.AdamW) -> None:
    for state in adamw.state.values():
        if "step" in state:
            state["step"] = state["step"].clone()
