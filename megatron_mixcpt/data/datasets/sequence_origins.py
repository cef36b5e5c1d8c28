"""Which records a training sequence of a mixture is made of: looked up only where something is to be reported of it."""

from pathlib import Path

from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_mixcpt.data.mixture.manifest import MixtureManifest, SourceSummary


def describe_sequence(dataset: BlendedDataset | GPTDataset, index: int, manifest: MixtureManifest) -> str:
    """The documents of sequence ``index``: dataset, number in it, and source file with number in that.

    A source's samples are counted from 1 and without its rejected records, in the file's order.
    """
    part, index = _part_of(dataset, index)
    part[index]  # the engine opens its indices with the first use, which may have been in a worker process
    place = part.shuffle_index[index]
    first, last = int(part.sample_index[place][0]), int(part.sample_index[place + 1][0])
    name = Path(part.dataset_path).name
    sources = manifest.datasets[name].sources
    documents = [int(number) for number in part.document_index[first : last + 1]]
    return ", ".join(f"{name} document {number}{_source(sources, number)}" for number in documents)


def _part_of(dataset: BlendedDataset | GPTDataset, index: int) -> tuple[GPTDataset, int]:
    if not isinstance(dataset, BlendedDataset):
        return dataset, index
    dataset[index]  # as above
    return dataset.datasets[int(dataset.dataset_index[index])], int(dataset.dataset_sample_index[index])


def _source(sources: tuple[SourceSummary, ...], document: int) -> str:
    """ " (FILE: sample 3)", or nothing where the manifest does not list the sources."""
    for source in sources:
        if document < source.samples:
            return f" ({source.path}: sample {document + 1})"
        document -= source.samples
    return ""
