"""What a run trains on and how, kept in its checkpoints: resuming with anything else is refused.

The record lies among the arguments that the engine saves with each iteration, as ``run_record``. It holds every flag,
the engine's and ours, that can change what is learned or the order of the samples; ``harmless_flags.py`` names those
that cannot. What flags point at, such as the data and the teacher, is in it by digest.
"""

import argparse
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_mixcpt.conversion.architectures.hf_config import FREE_ARGUMENTS, ROPE_ARGUMENTS
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError, ConfigError
from megatron_mixcpt.flags import described
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.flag_table import engine_arguments
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_ENGINE_ARGUMENTS, HARMLESS_FLAGS
from megatron_mixcpt.training.engine.patches import Change
from megatron_mixcpt.training.engine.refused_flags import REFUSED

Record = dict[str, Any]
"""Name of a setting, as a user knows it -> a plain value."""

_COMPARED_BYTES = 1 << 20  # of each file


def build_record(args: argparse.Namespace, config: Any, contents: Record) -> Record:
    """What decides the loss and the order of the samples.

    Args:
        args: the engine's arguments.
        config: the settings dataclass of the stage.
        contents: digests of what flags point at, and what is stated more precisely than by a flag.
    """
    ours = described(config)
    compared = {flag: value for flag, value in ours.items() if flag not in HARMLESS_FLAGS}
    return _engine_record(args, ours) | compared | contents


def _engine_record(args: argparse.Namespace, ours: Mapping[str, Any]) -> Record:
    """The engine's compared flags that differ from their defaults, without those that ``ours`` replaces."""
    given = {flag: (_plain(getattr(args, name, None)), default) for name, flag, default in engine_flags()}
    return {flag: value for flag, (value, default) in given.items() if value != default and flag not in ours}


@functools.cache
def engine_flags() -> tuple[tuple[str, str, Any], ...]:
    """Name, flag and default of each of the engine's arguments that is compared.

    Those that are refused are not: nobody can give them, and some the engine derives from the layout.
    """
    left_out = HARMLESS_ENGINE_ARGUMENTS.keys() | REFUSED.keys()
    compared = (item for item in engine_arguments().items() if item[0] not in left_out)
    return tuple((name, argument.flag, _plain(argument.default)) for name, argument in compared)


def files_digest(paths: Iterable[Path], start: str = "") -> str:
    """Tells files from others without reading them completely: names, sizes and the first MiB of each."""
    digest = hashlib.sha256(start.encode())
    for path in sorted(paths):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(_COMPARED_BYTES))
    return digest.hexdigest()[:16]


def check_resumes(
    args: argparse.Namespace,
    checkpoint: MegatronCheckpoint | None,
    record: Record,
    architecture: Mapping[str, Any],
    *,
    allow: bool,
) -> None:
    """Compare a run with the checkpoint that it resumes from, if any, and put ``record`` into ``args``.

    Args:
        args: the engine's arguments. **Changed**: the record is added.
        checkpoint: of ``--load``; None where there is none.
        record: of this run.
        architecture: engine arguments that follow from the model.
        allow: print the differences instead of refusing them.

    Raises:
        ConfigError: the record differs.
        CheckpointError: the checkpoint is of another model, or has no optimizer state to resume with.
    """
    args.run_record = record
    if checkpoint is None or not checkpoint.iteration or args.finetune:
        return
    saved = checkpoint.arguments()
    _check_architecture(checkpoint.folder, saved, architecture)
    if saved.get("no_save_optim") and not args.no_load_optim:
        raise CheckpointError(
            f"{checkpoint.folder} was saved without the optimizer (--no-save-optim), so that no run can resume from "
            "it: give it as --pretrained-checkpoint to start a new run from its weights"
        )
    changes = _changes(saved["run_record"], record) if "run_record" in saved else ""
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
    """What differs between the two; empty where nothing does. A flag that one of them lacks has its default there."""
    defaults = {flag: default for _, flag, default in engine_flags()}
    names = [*saved, *(name for name in record if name not in saved)]
    pairs = {name: tuple(side.get(name, defaults.get(name)) for side in (saved, record)) for name in names}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return "; ".join(f"{name} {old}, this one has {new}" for name, (old, new) in different.items())


def _check_architecture(folder: Path, saved: Record, architecture: Mapping[str, Any]) -> None:
    left_out = FREE_ARGUMENTS | ROPE_ARGUMENTS  # the record and the metadata say more of the rotary embedding
    wanted = {name: value for name, value in architecture.items() if name not in left_out and _is_plain(value)}
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


def _plain(value: Any) -> Any:
    """A value as the checkpoint keeps it: numbers, texts and lists of them as they are, anything else as text."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
