"""The files that a run reads, by dataset."""

from dataclasses import replace
from pathlib import Path

from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.errors import DataError


def find_inputs(settings: PreprocessSettings) -> list[Source]:
    """The files of all datasets, those of one together, in order.

    Raises DataError for a path that is not there or holds no data, and for a file of two sources of a kind.
    """
    found: dict[tuple[str, Path], Source] = {}
    for dataset, chosen in settings.datasets.items():
        kind, _, name = dataset.partition(".")
        for source in find_sources(kind, list(chosen.paths)):
            before = found.setdefault((kind, source.path.resolve()), replace(source, name=name))
            if before.name != name:
                raise DataError(f"--{kind} {name}={source.path}: {before.name} has that file, too; give it to one")
    return list(found.values())


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
    tokenizer = settings.tokenizer
    lines.append(f"tokenizer: {tokenizer.folder}, {tokenizer.vocab_size:,} tokens, end {tokenizer.eos_token!r}")
    return "\n".join(lines)
