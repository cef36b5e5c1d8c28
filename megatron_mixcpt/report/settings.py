"""Settings of ``tools/report.py``; the field docstrings are the help texts (``flags.py``)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.flags import setting


def _named(metavar: str) -> Any:
    """Values ``NAME=...`` of a flag that may be given several times."""
    return setting(default_factory=list, nargs="+", action="extend", metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What to report on."""

    folders: tuple[Path, ...] = setting(default=(), flag="folders", nargs="*", metavar="FOLDER")
    """Folders to search for training logs, evaluations, mixtures and score files, which are named after where they
    lie."""
    run: list[str] = _named("NAME=CHECKPOINTS")
    """Training runs: the --save folder of each, or the folder of its TensorBoard log."""
    evaluation: list[str] = _named("NAME=DIR")
    """Outputs of tools/evaluate.py."""
    mixture: list[str] = _named("NAME=DIR")
    """Folders written by tools/preprocess_mixture.py."""
    scores: list[str] = _named("NAME=FILE")
    """Outputs of tools/score_alignment.py."""
    base: str | None = setting(default=None, metavar="NAME")
    """Evaluation of the model before training. Default: the evaluation called base, if there is one."""
    domain: list[str] = _named("SET")
    """Texts, tasks, suites (a suite stands for all its tasks) and validation sets that belong to the domain; all
    others are everything else. Default: the validation set cpt."""
    title: str = setting(default="Mix-CPT: learned and forgotten", metavar="TEXT")
    """Title of the page."""
    output: Path = setting(metavar="DIR")
    """Folder to write."""
