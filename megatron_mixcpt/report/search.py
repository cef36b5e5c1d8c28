"""Finds in a folder what a report is made of: logs, evaluations, mixtures and score files, named after where they lie.

A name is the path below the searched folder without the parts that only say what lies there (``runs``, ``tensorboard``,
``evaluations``...), so that ``runs/mixcpt/seed-1/tensorboard`` and ``evaluations/mixcpt/seed-1/results.json`` both
belong to ``mixcpt/seed-1``.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from megatron_mixcpt.data.mixture.manifest import MANIFEST_NAME
from megatron_mixcpt.errors import ConfigError, MixCPTError
from megatron_mixcpt.report.inputs import RESULTS_NAME, Inputs, read_evaluation, read_fas, read_mixture, read_run
from megatron_mixcpt.training_log import files_below, find_log_folders

_SAY_ONLY_WHAT = {"runs", "checkpoints", "checkpoint", "tensorboard", "evaluations", "evaluation"}
_SCORES_PATTERN = "*scores*.jsonl"
_REJECTS_SUFFIX = ".rejects.jsonl"
# Of the folders in which training keeps the text that it validates on (--validation).
_TOKENIZED_PREFIX = "validation-"


class _Named(Protocol):
    """An input of any kind."""

    @property
    def name(self) -> str: ...


def search(folder: Path, inputs: Inputs) -> list[str]:
    """Add what is at or below ``folder`` to ``inputs``, in place.

    Returns:
        What was found but cannot be read, and why, a line each.

    Raises:
        ConfigError: the folder does not exist or holds nothing to report on.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give one with runs and evaluations in it")
    logs = [(path, _name(path, folder)) for path in find_log_folders(folder)]
    results = [(path, _name(path.parent, folder)) for path in files_below(folder, RESULTS_NAME)]
    mixtures = [(path, _name(path, folder)) for path in _mixtures(folder)]
    scores = [(path, str(path.relative_to(folder).with_suffix(""))) for path in _score_files(folder)]
    if not (logs or results or mixtures or scores):
        raise ConfigError(
            f"{folder}: no training log, {RESULTS_NAME}, {MANIFEST_NAME} or {_SCORES_PATTERN} in it; give the folder "
            "of runs and evaluations, or name each with --run, --evaluation and --scores"
        )
    return [
        *_add(inputs.runs, read_run, logs),
        *_add(inputs.evaluations, read_evaluation, results),
        *_add(inputs.mixtures, read_mixture, mixtures),
        *_add(inputs.fas, read_fas, scores),
    ]


def _mixtures(folder: Path) -> Iterator[Path]:
    for path in files_below(folder, MANIFEST_NAME):
        if not path.parent.name.startswith(_TOKENIZED_PREFIX):
            yield path.parent


def _score_files(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder, _SCORES_PATTERN) if not path.name.endswith(_REJECTS_SUFFIX))


def _add[T: _Named](items: list[T], read: Callable[[str, Path], T], found: Sequence[tuple[Path, str]]) -> Iterator[str]:
    """Read each path and append it, with its name, to ``items``; yields why not, where that fails."""
    for path, name in found:
        if any(item.name == name for item in items):
            yield f"{path}: {name} exists already; name each with a flag"
            continue
        try:
            items.append(read(name, path))
        except MixCPTError as error:
            yield str(error)


def _name(path: Path, folder: Path) -> str:
    parts = [part for part in path.relative_to(folder).parts if part not in _SAY_ONLY_WHAT]
    return "/".join(parts) or folder.resolve().name
