"""What a report is made of, read from files: training logs, evaluations, mixtures and alignment scores."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.training_log import TrainingLog, log_folder, read_log

_SEED = re.compile(r"(.+?)[/._ -]*seed[-_ ]?(\d+)")
RESULTS_NAME = "results.json"


def method_of(name: str) -> str:
    """The method of a run: its name without a seed at the end (``mixcpt/seed-1`` and ``mixcpt-seed2``: ``mixcpt``)."""
    found = _SEED.fullmatch(name)
    return found[1] if found else name


@dataclass(frozen=True)
class Score:
    """One figure of an evaluation."""

    suite: str
    """Suite of a task; ``""`` for a text."""
    name: str
    value: float
    """Bits per byte of a text, or percent of a task."""
    detail: str
    """How the figure was measured."""

    @property
    def is_text(self) -> bool:
        """A text's figure is better when lower, a task's when higher."""
        return not self.suite


@dataclass(frozen=True)
class Evaluation:
    """A ``results.json`` of ``tools/evaluate.py``."""

    name: str
    scores: tuple[Score, ...]
    origin: str
    """The model and when it was evaluated."""

    @property
    def method(self) -> str:
        """See :func:`method_of`."""
        return method_of(self.name)


@dataclass(frozen=True)
class TrainingRun:
    """A training run, from its log."""

    name: str
    log: TrainingLog

    @property
    def method(self) -> str:
        """See :func:`method_of`."""
        return method_of(self.name)


@dataclass(frozen=True)
class Mixture:
    """A folder of ``tools/preprocess_mixture.py``."""

    name: str
    manifest: MixtureManifest


@dataclass(frozen=True)
class ScoresFile:
    """An output of ``tools/score_alignment.py``."""

    name: str
    fas: dict[str, list[float]]
    """Kind of sample -> format alignment scores."""


@dataclass
class Inputs:
    """All that was given or found, in that order."""

    runs: list[TrainingRun] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    mixtures: list[Mixture] = field(default_factory=list)
    fas: list[ScoresFile] = field(default_factory=list)


def read_run(name: str, folder: Path) -> TrainingRun:
    """A run from its checkpoints' folder, or from the folder of its log. Raises DataError without a log."""
    log = log_folder([folder / "tensorboard", folder])
    if log is None:
        raise DataError(
            f"--run {name}={folder}: no TensorBoard log in it or in its tensorboard/; give the --save folder of a run"
        )
    return TrainingRun(name, read_log(log))


def read_evaluation(name: str, path: Path) -> Evaluation:
    """An evaluation from the output folder of ``tools/evaluate.py``, or its ``results.json``. Raises DataError."""
    file = path / RESULTS_NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        scores = [*_texts(content["perplexity"]), *_tasks(content["tasks"])]
        model = content["model"]
        origin = f"{model['path']}" + ("" if model["iteration"] is None else f", iteration {model['iteration']}")
        return Evaluation(name, tuple(scores), f"{origin}, evaluated {content['created']}")
    except OSError as error:
        raise DataError(
            f"--evaluation {name}={path}: {error.strerror}; give the --output folder of tools/evaluate.py"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not in the form that tools/evaluate.py writes ({error!r}); evaluate again") from error


def _texts(perplexity: dict[str, Any]) -> list[Score]:
    return [Score("", name, float(item["bits_per_byte"]), _measured(item)) for name, item in perplexity.items()]


def _measured(item: dict[str, Any]) -> str:
    stride = "" if item["stride"] == item["sequence_length"] else f", stride {item['stride']:,}"
    return f"{item['bytes']:,} bytes in windows of {item['sequence_length']:,}{stride}"


def _tasks(suites: dict[str, Any]) -> list[Score]:
    return [
        Score(
            suite,
            task,
            100 * float(item["value"]),
            f"{item['metric']}, {item['num_fewshot']}-shot, {item['samples']:,} questions",
        )
        for suite, tasks in suites.items()
        for task, item in tasks.items()
    ]


def read_mixture(name: str, folder: Path) -> Mixture:
    """A mixture from its folder. Raises DataError."""
    return Mixture(name, MixtureManifest.load(folder))


def read_fas(name: str, path: Path) -> ScoresFile:
    """The format alignment scores in a file of ``tools/score_alignment.py``. Raises DataError."""
    scores: dict[str, list[float]] = {}
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                kind, score = _fas_of(line, f"{path}:{number}")
                scores.setdefault(kind, []).append(score)
    except OSError as error:
        raise DataError(
            f"--scores {name}={path}: {error.strerror}; give an output of tools/score_alignment.py"
        ) from error
    if not scores:
        raise DataError(f"--scores {name}={path}: it holds no scores; give an output of tools/score_alignment.py")
    return ScoresFile(name, scores)


def _fas_of(line: bytes, place: str) -> tuple[str, float]:
    try:
        sample = orjson.loads(line)
        score = float(sample["fas"])
        if not 0 < score < math.inf:
            raise ValueError(f"a score of {score}")
        return str(sample["kind"]), score
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: not a line of tools/score_alignment.py ({error!r}); score again") from error


def methods(items: Sequence[TrainingRun] | Sequence[Evaluation]) -> list[str]:
    """The methods of runs or evaluations, each once, in order."""
    return list(dict.fromkeys(item.method for item in items))
