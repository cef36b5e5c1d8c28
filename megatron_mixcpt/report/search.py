"""Finds in a folder what a report is made of: logs, evaluations, mixtures and score files, named after where they lie.

A name is the path below the searched folder without the parts that only say what lies there (``runs``, ``tensorboard``,
``evaluations``...), so that ``runs/mixcpt/seed-1/tensorboard`` and ``evaluations/mixcpt/seed-1/results.json`` are both
of ``mixcpt/seed-1``.
"""

from collections.abc import Callable
from pathlib import Path

from megatron_mixcpt.conversion.training_log import find_log_folders
from megatron_mixcpt.data.manifest import MANIFEST_NAME, MixtureManifest
from megatron_mixcpt.errors import ConfigError, MixCPTError
from megatron_mixcpt.report.inputs import RESULTS_NAME, Inputs, read_evaluation, read_fas, read_run

_SAY_ONLY_WHAT = {"runs", "checkpoints", "checkpoint", "tensorboard", "evaluations", "evaluation"}
_SCORES_PATTERN = "*scores*.jsonl"
_REJECTS_SUFFIX = ".rejects.jsonl"


def search(folder: Path, inputs: Inputs) -> list[str]:
    """Add what is at or below ``folder`` to ``inputs``, in place.

    Returns:
        What was found but cannot be read, and why, a line each.

    Raises:
        ConfigError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give one with runs and evaluations in it")
    before = _size(inputs)
    problems: list[str] = []
    for path in find_log_folders(folder):
        _try(problems, lambda path=path: inputs.runs.append(read_run(_name(path, folder), path)))
    for path in sorted(folder.rglob(RESULTS_NAME)):
        name = _name(path.parent, folder)
        _try(problems, lambda path=path, name=name: inputs.evaluations.append(read_evaluation(name, path)))
    for path in sorted(folder.rglob(MANIFEST_NAME)):
        if not path.parent.name.startswith("validation-"):  # text that training tokenized to measure it
            name = _name(path.parent, folder)
            _try(problems, lambda path=path, name=name: inputs.mixtures.update({name: _mixture(path)}))
    for path in sorted(folder.rglob(_SCORES_PATTERN)):
        if not path.name.endswith(_REJECTS_SUFFIX):
            name = str(path.relative_to(folder).with_suffix(""))
            _try(problems, lambda path=path, name=name: inputs.fas.update({name: read_fas(path)}))
    if _size(inputs) == before and not problems:
        raise ConfigError(
            f"{folder}: no training log, {RESULTS_NAME}, {MANIFEST_NAME} or {_SCORES_PATTERN} in it; give the folder "
            "of runs and evaluations, or name each with --run, --evaluation and --scores"
        )
    return problems


def _mixture(path: Path) -> MixtureManifest:
    return MixtureManifest.load(path.parent)


def _try(problems: list[str], read: Callable[[], None]) -> None:
    try:
        read()
    except MixCPTError as error:
        problems.append(str(error))


def _name(path: Path, folder: Path) -> str:
    parts = [part for part in path.relative_to(folder).parts if part not in _SAY_ONLY_WHAT]
    return "/".join(parts) or folder.resolve().name


def _size(inputs: Inputs) -> int:
    return len(inputs.runs) + len(inputs.evaluations) + len(inputs.mixtures) + len(inputs.fas)
