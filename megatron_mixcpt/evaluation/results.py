"""The output of an evaluation: ``results.json``, a file of samples for each task, and a table for the terminal.

``results.json`` is what ``tools/report.py`` compares runs by::

    {"model": {"path", "kind": "hf", "megatron" or "server", "iteration", "name"; of a server: "url", "served_model"},
     "perplexity": {NAME: {"path", "documents", "tokens", "bytes", "bits_per_byte", "perplexity",
                           "sequence_length", "stride"}},
     "tasks": {SUITE: {TASK: {"metric", "value" (0 to 1), "stderr", "samples", "num_fewshot"}}},
     "settings": {flag: value}, "versions": {package: version}, "created": ISO time}
"""

import json
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_mixcpt import __version__
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.evaluation.models.server_settings import ServerSettings
from megatron_mixcpt.evaluation.perplexity import Perplexity
from megatron_mixcpt.evaluation.settings import PerplexitySettings
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.jobs.ranks import whole_folder_of_ranks

FILE_NAME = "results.json"
PACKAGES = ("megatron-core", "torch", "transformers", "lm-eval", "datasets")


def check_new(output: Path) -> None:
    """Raise ConfigError where ``--output`` cannot be made, before any work is done."""
    if output.exists():
        raise ConfigError(f"--output {output} already exists; choose another, or remove it")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output {output}: the folder {output.parent} does not exist; create it first")


def described_model(source: ModelSource, folder: Path, name: str | None) -> dict[str, Any]:
    """The model's identity, of ``folder`` as given to ``--hf-model`` or ``--load``."""
    return {
        "path": str(folder.resolve()),
        "kind": "megatron" if source.is_megatron else "hf",
        "iteration": source.iteration,
        "name": name or folder.resolve().name,
    }


def described_server(settings: ServerSettings, folder: Path, name: str | None) -> dict[str, Any]:
    """The identity of a model that a server answered for; ``folder`` is the one given to ``--hf-model``."""
    return {
        "path": str(folder.resolve()),
        "kind": "server",
        "iteration": None,
        "name": name or settings.served_model,
        "url": settings.base_url,
        "served_model": settings.served_model,
    }


def described_perplexity(figures: Perplexity, settings: PerplexitySettings) -> dict[str, Any]:
    """One text set's entry."""
    return {
        "path": figures.path,
        "documents": figures.documents,
        "tokens": figures.tokens,
        "bytes": figures.bytes,
        "bits_per_byte": figures.bits_per_byte,
        "perplexity": figures.perplexity,
        "sequence_length": settings.sequence_length,
        "stride": settings.tokens_per_window,
    }


def provenance() -> dict[str, Any]:
    """What else a result depends on: versions of the packages that are installed, and when it was made."""
    versions = {"megatron-mixcpt": __version__, "python": platform.python_version()}
    installed = {found.name.lower().replace("_", "-"): found.version for found in metadata.distributions()}
    versions |= {name: installed[name] for name in PACKAGES if name in installed}
    return {"versions": versions, "created": datetime.now(UTC).isoformat(timespec="seconds")}


def write_results(output: Path, results: Mapping[str, Any], samples: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Write the folder aside and rename it: ``results.json`` and ``samples-TASK.jsonl`` for each of ``samples``."""
    with whole_folder_of_ranks(output) as aside:
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
        (aside / FILE_NAME).write_text(text + "\n", encoding="utf-8")
        for task, lines in samples.items():
            with open(aside / f"samples-{task}.jsonl", "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)


def table(results: Mapping[str, Any]) -> str:
    """The figures of ``results.json`` for a terminal."""
    lines = []
    if results["perplexity"]:
        lines.append(f"{'text set':<24}{'documents':>10}{'tokens':>12}{'bytes':>13}{'bits/byte':>11}{'perplexity':>12}")
    for name, item in results["perplexity"].items():
        counts = f"{item['documents']:>10,}{item['tokens']:>12,}{item['bytes']:>13,}"
        lines.append(f"{name:<24}{counts}{item['bits_per_byte']:>11.4f}{item['perplexity']:>12.3f}")
    if results["tasks"]:
        lines.append(f"{'suite':<12}{'task':<24}{'metric':<34}{'shots':>5}{'samples':>9}{'value':>8}{'stderr':>8}")
    for suite, tasks in results["tasks"].items():
        for name, item in tasks.items():
            stderr = "" if item["stderr"] is None else f"{item['stderr']:.4f}"
            counts = f"{item['num_fewshot']:>5}{item['samples']:>9,}"
            lines.append(f"{suite:<12}{name:<24}{item['metric']:<34}{counts}{item['value']:>8.4f}{stderr:>8}")
    return "\n".join(lines)
