"""The files that a run reads, by dataset."""

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_mixcpt.data.dataset_names import kind_of, source_of
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.sources import find_files
from megatron_mixcpt.errors import DataError


@dataclass(frozen=True)
class Inputs:
    """What the paths of a run stand for."""

    sources: list[Source]
    """The files of all datasets, those of one together, in order."""
    left_out: list[str]
    """A line for each dataset of whose folders files are left out, because their names say test or validation."""


def find_inputs(settings: PreprocessSettings) -> Inputs:
    """The files of all datasets.

    Raises DataError for a path that is not there or holds no data, and for a file of two sources of a kind.
    """
    found: dict[tuple[str, Path], Source] = {}
    left_out = []
    for dataset, chosen in settings.datasets.items():
        kind, name = kind_of(dataset), source_of(dataset)
        files = find_files(kind, chosen.paths, settings.reading.include_held_out_splits)
        for source in files.sources:
            before = found.setdefault((kind, source.path.resolve()), replace(source, name=name))
            if before.name != name:
                raise DataError(f"--{kind} {name}={source.path}: {before.name} has that file, too; give it to one")
        left_out.append(files.describe_held_out(dataset))
    return Inputs(list(found.values()), [line for line in left_out if line])


def describe_plan(settings: PreprocessSettings, output: Path) -> str:
    """What preprocessing would read and write, as text. Reads no file's contents. Raises DataError."""
    lines, inputs = [], find_inputs(settings)
    for name in settings.datasets:
        files = [source for source in inputs.sources if source.dataset == name]
        megabytes = sum(source.size for source in files) / 1e6
        lines.append(f"{name}: {len(files)} file(s), {megabytes:,.1f} MB -> {output / name}.bin and .idx")
        lines += [
            f"  {source.path} ({source.format.name}{source.compression}, {source.size:,} bytes)" for source in files
        ]
    lines += inputs.left_out
    tokenizer = settings.tokenizer
    lines.append(f"tokenizer: {tokenizer.folder}, {tokenizer.vocab_size:,} tokens, end {tokenizer.eos_token!r}")
    return "\n".join(lines)
