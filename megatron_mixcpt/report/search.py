"""Finds in a folder what a report is made of: logs, evaluations, mixtures and score files, named after where they lie.

A name is the path below the searched folder without the parts that only say what lies there (``runs``, ``tensorboard``,
``evaluations``...), so that ``runs/mixcpt/seed-1/tensorboard`` and ``evaluations/mixcpt/seed-1/results.json`` are both
of ``mixcpt/seed-1``.
"""

from collections.abc import Callable
from pathlib import Path

from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME
from megatron_mixcpt.errors import ConfigError, MixCPTError
from megatron_mixcpt.report.inputs import RESULTS_NAME, Inputs, read_evaluation, read_fas, read_mixture, read_run
from megatron_mixcpt.training_log import find_log_folders

_SAY_ONLY_WHAT = {"runs", "checkpoints", "checkpoint", "tensorboard", "evaluations", "evaluation"}
_SCORES_PATTERN = "*scores*.jsonl"
_REJECTS_SUFFIX = ".rejects.jsonl"
# Of the folders in which training keeps the text that it validates on (--validation).
_TOKENIZED_PREFIX = "validation-"


def search(folder: Path, inputs: Inputs) -> list[str]:
    """Add what is at or below ``folder`` to ``inputs``, in place.

    Returns:
        What was found but cannot be read, and why, a line each.

    Raises:
        ConfigError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give one with runs and evaluations in it")
    found = [(inputs.runs, read_run, path, _name(path, folder)) for path in find_log_folders(folder)]
    for path in sorted(folder.rglob(RESULTS_NAME)):
        found.append((inputs.evaluations, read_evaluation, path, _name(path.parent, folder)))
    for path in sorted(folder.rglob(MANIFEST_NAME)):
        if not path.parent.name.startswith(_TOKENIZED_PREFIX):
            found.append((inputs.mixtures, read_mixture, path.parent, _name(path.parent, folder)))
    for path in sorted(folder.rglob(_SCORES_PATTERN)):
        if not path.name.endswith(_REJECTS_SUFFIX):
            found.append((inputs.fas, read_fas, path, str(path.relative_to(folder).with_suffix(""))))
    if not found:
        raise ConfigError(
            f"{folder}: no training log, {RESULTS_NAME}, {MANIFEST_NAME} or {_SCORES_PATTERN} in it; give the folder "
            "of runs and evaluations, or name each with --run, --evaluation and --scores"
        )
    problems = [_add(items, read, path, name) for items, read, path, name in found]
    return [problem for problem in problems if problem]


def _add(items: list, read: Callable, path: Path, name: str) -> str | None:
    """Read ``path`` and append it to ``items``; returns why not, where that fails."""
    if any(item.name == name for item in items):
        return f"{path}: there is another {name} already; give each a name of its own with the flags"
    try:
        items.append(read(name, path))
    except MixCPTError as error:
        return str(error)
    return None


def _name(path: Path, folder: Path) -> str:
    parts = [part for part in path.relative_to(folder).parts if part not in _SAY_ONLY_WHAT]
    return "/".join(parts) or folder.resolve().name
