"""What a run trains on and how, kept in its checkpoints: a run that goes on with something else is refused.

The record lies among the arguments that the engine saves with each iteration, as ``run_record``.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import FREE_ARGUMENTS
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.patches import Change

Record = dict[str, Any]
"""Name of a setting, as a user knows it -> a plain value."""


def check_resumes(
    args: argparse.Namespace,
    checkpoint: MegatronCheckpoint | None,
    record: Record,
    architecture: Mapping[str, Any],
    *,
    allow: bool,
) -> None:
    """Compare a run with the checkpoint that it goes on from, if any, and put ``record`` into ``args``.

    Args:
        args: the engine's arguments. **Changed**: the record is added.
        checkpoint: what ``--load`` names; None: the run begins anew.
        record: of this run.
        architecture: engine arguments that follow from the model.
        allow: print what differs in the record rather than refuse it.

    Raises:
        ConfigError: the record differs.
        CheckpointError: the checkpoint is of another model, or has no optimizer to go on with.
    """
    args.run_record = record
    if args.finetune or checkpoint is None or not checkpoint.iteration:
        return
    saved = checkpoint.arguments()
    _check_architecture(checkpoint.folder, saved, architecture)
    if saved.get("no_save_optim") and not args.no_load_optim:
        raise CheckpointError(
            f"{checkpoint.folder} was saved without the optimizer (--no-save-optim), so that no run can go on from it: "
            "give it as --pretrained-checkpoint to start a new run from its weights"
        )
    changes = _changes(saved.get("run_record", {}), record)
    if changes and not allow:
        raise ConfigError(
            f"{checkpoint.folder} is of a run with {changes}: give what it had, another --save, or "
            "--resume-with-changes"
        )
    if changes and args.rank == 0:
        say(f"warning: {checkpoint.folder} is of a run with {changes}")


def schedule_check() -> Change:
    """Explains the engine's refusal of a learning rate schedule that is not the checkpoint's, a bare assertion."""
    name = "megatron.core.optimizer_param_scheduler.OptimizerParamScheduler.load_state_dict"
    return Change(name, __name__, _explained)


def _explained(load_state_dict: Callable) -> Callable:
    @functools.wraps(load_state_dict)
    def explained(*positional: Any, **named: Any) -> None:
        try:
            load_state_dict(*positional, **named)
        except AssertionError as error:
            raise ConfigError(
                f"the run resumes with another learning rate schedule than it was saved with ({error}): give the flags "
                "it had (--train-iters or --train-samples, --lr...), or --override-opt_param-scheduler to take the new "
                "ones"
            ) from error

    return explained


def _changes(saved: Record, record: Record) -> str:
    """What ``record`` has otherwise than ``saved``; empty where it has all the same."""
    different = [name for name in saved if saved[name] != record.get(name)]
    return "; ".join(f"{name} {saved[name]}, this one has {record.get(name)}" for name in different)


def _check_architecture(folder: Path, saved: Record, architecture: Mapping[str, Any]) -> None:
    wanted = {name: value for name, value in architecture.items() if name not in FREE_ARGUMENTS and _is_plain(value)}
    different = [
        f"{name} {saved[name]} (the model has {value})"
        for name, value in wanted.items()
        if _is_plain(saved.get(name)) and saved[name] != value  # a value of another type was not opened
    ]
    if different:
        raise CheckpointError(
            f"{folder} is of another architecture than the model: {', '.join(different)}; give the checkpoint's own "
            "--hf-model, or another folder"
        )


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
