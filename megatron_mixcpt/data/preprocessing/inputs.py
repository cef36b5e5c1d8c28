"""The files that a run reads, by dataset."""

from dataclasses import replace
from pathlib import Path

from megatron_mixcpt.data.dataset_names import kind_of
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.sources import find_files
from megatron_mixcpt.errors import DataError


def find_inputs(settings: PreprocessSettings) -> list[Source]:
    """The files of all datasets, those of one together, in order.

    Raises DataError for a path that is not there or holds no data, and for a file of two sources of a kind.
    """
    found: dict[tuple[str, Path], Source] = {}
    for dataset, chosen in settings.datasets.items():
        kind, _, name = dataset.partition(".")
        for source in find_files(kind, chosen.paths, settings.reading.include_held_out_splits).sources:
            before = found.setdefault((kind, source.path.resolve()), replace(source, name=name))
            if before.name != name:
                raise DataError(f"--{kind} {name}={source.path}: {before.name} has that file, too; give it to one")
    return list(found.values())


def held_out_lines(settings: PreprocessSettings) -> list[str]:
    """A line for each dataset of whose folders files are left out, because their names say test or validation."""
    found = [
        find_files(kind_of(dataset), chosen.paths, settings.reading.include_held_out_splits).describe_held_out(dataset)
        for dataset, chosen in settings.datasets.items()
    ]
    return [line for line in found if line]


def describe_plan(settings: PreprocessSettings, output: Path) -> str:
    """What preprocessing would read and write, as text. Reads no file's contents. Raises DataError."""
    lines, sources = [], find_inputs(settings)
    for name in settings.datasets:
        files = [source for source in sources if source.dataset == name]
        megabytes = sum(source.size for source in files) / 1e6
        lines.append(f"{name}: {len(files)} file(s), {megabytes:,.1f} MB -> {output / name}.bin and .idx")
        lines += [
            f"  {source.path} ({source.format.name}{source.compression}, {source.size:,} bytes)" for source in files
        ]
    lines += held_out_lines(settings)
    tokenizer = settings.tokenizer
    lines.append(f"tokenizer: {tokenizer.folder}, {tokenizer.vocab_size:,} tokens, end {tokenizer.eos_token!r}")
    return "\n".join(lines)
