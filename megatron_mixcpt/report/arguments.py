"""The flags of ``tools/report.py``, what they name, and what the page will lack."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.named_paths import parse_named_paths
from megatron_mixcpt.report.compare import check_domain, validated
from megatron_mixcpt.report.inputs import Inputs, read_evaluation, read_fas, read_mixture, read_run
from megatron_mixcpt.report.search import search

DEFAULT_BASE = "base"
DEFAULT_DOMAIN = ("cpt",)


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "search here for training logs, evaluations, mixtures and score files, named after where they lie"
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help=text)
    for flag, metavar, text in (
        ("--run", "NAME=CHECKPOINTS", "a training run: its --save folder, or the folder of its TensorBoard log"),
        ("--evaluation", "NAME=DIR", "an output of tools/evaluate.py"),
        ("--mixture", "NAME=DIR", "a folder of tools/preprocess_mixture.py"),
        ("--scores", "NAME=FILE", "an output of tools/score_alignment.py"),
    ):
        parser.add_argument(flag, nargs="+", action="extend", default=[], metavar=metavar, help=text)
    text = f"the evaluation of the model before training (default: {DEFAULT_BASE}, if there is one)"
    parser.add_argument("--base", metavar="NAME", help=text)
    text = (
        "texts, tasks, suites (a suite is all its tasks) and validation sets that are of the domain; all others are "
        "everything else (default: the validation set cpt)"
    )
    parser.add_argument("--domain", nargs="+", action="extend", metavar="SET", help=text)
    parser.add_argument("--title", default="Mix-CPT: learned and forgotten", help="of the page")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    return parser


def gather(arguments: argparse.Namespace) -> tuple[Inputs, list[str]]:
    """Read what the flags name, then what the folders hold.

    Returns:
        The inputs, and what was found but cannot be read.

    Raises:
        MixCPTError: what is named cannot be read; a name of nothing or given twice; nothing is left to report on.
    """
    inputs, problems = Inputs(), []
    for flag, given, read, items in (
        ("--run", arguments.run, read_run, inputs.runs),
        ("--evaluation", arguments.evaluation, read_evaluation, inputs.evaluations),
        ("--mixture", arguments.mixture, read_mixture, inputs.mixtures),
        ("--scores", arguments.scores, read_fas, inputs.fas),
    ):
        items.extend(read(name, Path(path)) for name, path in parse_named_paths(flag, given).items())
    for folder in arguments.folders:
        problems += search(folder, inputs)
    if not (inputs.runs or inputs.evaluations or inputs.mixtures or inputs.fas):
        raise ConfigError(
            "nothing to report on: give a FOLDER of runs and evaluations, or --run, --evaluation, --mixture, --scores"
            + (f" ({problems[0]})" if problems else "")
        )
    check_domain(arguments.domain or [], inputs.evaluations, inputs.runs)
    return inputs, problems


def choose_base(inputs: Inputs, given: str | None) -> str | None:
    """The name of the base's evaluation, or None where that is not known. Raises ConfigError for one not there."""
    names = [evaluation.name for evaluation in inputs.evaluations]
    if given and given not in names:
        raise ConfigError(f"--base {given}: no such evaluation; there are: {', '.join(names) or 'none'}")
    return given or (DEFAULT_BASE if DEFAULT_BASE in names else None)


def missing(inputs: Inputs, base: str | None, domain: Sequence[str]) -> list[str]:
    """What the page has nothing about, and what would change that, a sentence each."""
    scores = {score.name for evaluation in inputs.evaluations for score in evaluation.scores}
    suites = {score.suite for evaluation in inputs.evaluations for score in evaluation.scores if score.suite}
    said = {
        "Evaluations: none (tools/evaluate.py makes them; --evaluation NAME=DIR).": not inputs.evaluations,
        "Gains of the evaluations: which is of the model before training is not known (--base NAME).": bool(
            inputs.evaluations and base is None
        ),
        f"The domain of the evaluations: none of their scores is named as the domain's (--domain; there are: "
        f"{', '.join(sorted(scores | suites))}).": bool(scores and not (scores | suites) & set(domain)),
        "Training curves: no log (--run NAME=CHECKPOINTS).": not inputs.runs,
        "Validation during training: no run measured student and teacher on held-out text (--split 99,1,0 or "
        "--validation NAME=PATH in training).": bool(inputs.runs and not any(validated(run) for run in inputs.runs)),
        "Format alignment scores: none (tools/score_alignment.py makes them; --scores NAME=FILE).": not inputs.fas,
        "Data: no mixture (--mixture NAME=DIR).": not inputs.mixtures,
    }
    return [sentence for sentence, is_so in said.items() if is_so]
