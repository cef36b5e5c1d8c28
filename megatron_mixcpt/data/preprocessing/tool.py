"""Make the knowledge mixture: documents, instructions and preferences become indexed datasets that Megatron trains on.

    python tools/preprocess_mixture.py --cpt docs/ --sft chat.jsonl --dpo pairs.parquet \\
        --tokenizer models/Llama-3-8B --output data/mixture --workers 8

Writes cpt.bin/.idx, sft.bin/.idx and dpo.bin/.idx (those that were given), rejects.jsonl.gz with every record that gave
no sample, and mixture.json, which describes them. Started again after an interruption, it continues where it stopped.
Formats and options are explained in docs/how-to/prepare-data.md.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from megatron_mixcpt import flags
from megatron_mixcpt.data.dataset_names import dataset_name
from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import plan_mixture
from megatron_mixcpt.data.mixture.shares import parse_epochs, parse_weights
from megatron_mixcpt.data.preprocessing.decontaminate import test_sets_digest
from megatron_mixcpt.data.preprocessing.inputs import describe_plan
from megatron_mixcpt.data.preprocessing.named_sources import read_sources
from megatron_mixcpt.data.preprocessing.parts.encode import WhoWorks
from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.settings import KeptKindSettings, PreprocessSettings, SampleSettings
from megatron_mixcpt.data.reading.embedded_templates import BUILT_IN_RULES
from megatron_mixcpt.data.reading.presets import PRESETS
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_flags import add_record_flags, record_settings
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError, exit_on_user_error
from megatron_mixcpt.flags import Parser, setting, settings_from


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What is read, and where the mixture is written."""

    cpt: tuple[tuple[str, ...], ...] = setting(default=(), metavar="PATH")
    """Documents of the domain: files, folders, globs. NAME=PATH makes a dataset of its own of what it and the paths
    after it hold (cpt.NAME), with weights, epochs and held-out samples of its own; the flag may be repeated."""
    sft: tuple[tuple[str, ...], ...] = setting(default=(), metavar="PATH")
    """Instruction samples (messages, prompt and response, or instruction, input and output): as --cpt."""
    dpo: tuple[tuple[str, ...], ...] = setting(default=(), metavar="PATH")
    """Preferences (prompt, chosen and rejected): as --cpt."""
    tokenizer: Path | None = setting(default=None, metavar="DIR")
    """Hugging Face model or tokenizer folder."""
    eos_token: str | None = setting(default=None, metavar="TOKEN")
    """Token that ends a sample. Default: the tokenizer's eos_token."""
    output: Path | None = setting(default=None, metavar="DIR")
    """Folder to write."""
    workers: int = 1
    """Number of processes that encode."""
    ray: str | None = setting(default=None, metavar="ADDRESS")
    """Have the nodes of a running Ray cluster encode: auto, or its address. Every node needs this package, and must
    see inputs and output under the same absolute paths. Writes the same bytes as one machine."""
    dry_run: bool = False
    """Print what would be read and written, and stop."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: must be at least 1")
        if self.ray and self.workers > 1:
            raise ConfigError(f"--workers {self.workers}: with --ray the cluster decides how many work; remove one")


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """Lists of what is built in."""

    list_templates: bool = False
    """List the chat templates that are removed from the text of the data, and stop."""
    list_presets: bool = False
    """List the presets, and stop."""


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What a training run would draw from a finished mixture."""

    plan: Path | None = setting(default=None, metavar="DIR")
    """Print the plan for the mixture in DIR, and stop."""
    seq_length: int = 2048
    """Sequence length, in tokens."""
    global_batch_size: int = 1920
    """Global batch size, in sequences."""
    split: str = setting(default="100,0,0", metavar="PARTS")
    """Parts of train, validation and test."""
    epochs: str = setting(default="1", metavar="E")
    """Passes over the data, for all or by kind or source: cpt=1,sft=2."""
    mixture_weights: str | None = setting(default=None, metavar="WEIGHTS")
    """Shares of the run's tokens by kind or source: cpt.law=0.5,cpt.replay=0.2,sft=0.2,dpo=0.1."""

    def text(self) -> str:
        """The plan, for a terminal. Raises ConfigError and DataError."""
        assert self.plan is not None
        plan = plan_mixture(
            MixtureManifest.load(self.plan),
            sequence_length=self.seq_length,
            split=self.split,
            epochs=parse_epochs(self.epochs),
            weights=parse_weights(self.mixture_weights),
        )
        return plan.table(self.global_batch_size)


def build_parser() -> Parser:
    """The parser of ``tools/preprocess_mixture.py``."""
    parser = flags.build_parser(__doc__, RunSettings, SampleSettings, ReadingSettings, ListSettings)
    for kind in KINDS:
        add_record_flags(parser, kind, KeptKindSettings)
    flags.add_flags(parser, PlanSettings, grouped=True)
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, preprocess, and print a summary."""
    arguments = build_parser().parse_args(argv)
    if text := _listing(arguments):
        print(text)
        return
    run, settings = settings_from(arguments, RunSettings), preprocess_settings(arguments)
    assert run.output is not None
    for warning in settings.tokenizer.warnings():
        print(f"warning: {warning}", flush=True)
    if run.dry_run:
        print(describe_plan(settings, run.output))
        return
    print(preprocess(settings, run.output, WhoWorks(run.workers, run.ray or "")).summary())


def _listing(arguments: argparse.Namespace) -> str:
    """What the flags ask for that print something and stop; empty where none of them is given."""
    plan, lists = settings_from(arguments, PlanSettings), settings_from(arguments, ListSettings)
    lines = [plan.text()] if plan.plan else []
    if lists.list_templates:
        lines += [f"{rule.name:<22}{rule.about}" for rule in BUILT_IN_RULES]
    if lists.list_presets:
        lines += [f"{name:<22}{preset.kind}: {preset.about}" for name, preset in PRESETS.items()]
    return "\n".join(lines)


def preprocess_settings(arguments: argparse.Namespace) -> PreprocessSettings:
    """The settings that decide what is written. Raises ConfigError, CheckpointError or DataError."""
    run, samples = settings_from(arguments, RunSettings), settings_from(arguments, SampleSettings)
    given = [kind for kind in KINDS if getattr(run, kind)]
    if not given:
        raise ConfigError("nothing to preprocess: give at least one of --cpt, --sft and --dpo")
    if run.tokenizer is None or run.output is None:
        raise ConfigError(f"--{'tokenizer' if run.tokenizer is None else 'output'} is missing")
    datasets = {}
    for kind in given:
        of_kind = record_settings(kind, arguments, KeptKindSettings)
        for name, paths in read_sources(f"--{kind}", getattr(run, kind)).items():
            datasets[dataset_name(kind, name)] = replace(of_kind, paths=paths)
    return PreprocessSettings(
        datasets=datasets,
        reading=settings_from(arguments, ReadingSettings),
        tokenizer=_read_tokenizer(run.tokenizer, run.eos_token),
        test_sets_digest=test_sets_digest(list(samples.decontaminate)),
        **vars(samples),
    )


def _read_tokenizer(folder: Path, eos_token: str | None) -> TokenizerFiles:
    """Read a tokenizer folder in a process of its own. Raises as :meth:`TokenizerFiles.read` does.

    transformers brings torch, some 600 MB that this process and its workers have no other use for.
    """
    if "transformers" in sys.modules:
        return TokenizerFiles.read(folder, eos_token)
    with ProcessPoolExecutor(1, get_context("spawn")) as reader:
        return reader.submit(TokenizerFiles.read, folder, eos_token).result()
