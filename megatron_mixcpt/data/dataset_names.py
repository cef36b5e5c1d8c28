"""Names of a mixture's datasets: a kind of record, or one named source of a kind (``cpt``, ``cpt.law``)."""

import re
from collections.abc import Iterable

from megatron_mixcpt.data.records import KINDS

SOURCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""What a source may be called."""


def dataset_name(kind: str, source: str) -> str:
    """The dataset of a kind's named source; of the whole kind where ``source`` is empty."""
    return f"{kind}.{source}" if source else kind


def kind_of(dataset: str) -> str:
    """The kind of record that a dataset is of."""
    return dataset.partition(".")[0]


def source_of(dataset: str) -> str:
    """The name of the source that a dataset is; empty where it is a whole kind."""
    return dataset.partition(".")[2]


def is_dataset_name(text: str) -> bool:
    """Whether a dataset may have this name."""
    kind, dot, source = text.partition(".")
    return kind in KINDS and (not dot or SOURCE_NAME.fullmatch(source) is not None)


def of_kind(kind: str, datasets: Iterable[str]) -> list[str]:
    """Those of ``datasets`` that are of a kind."""
    return [dataset for dataset in datasets if kind_of(dataset) == kind]
