"""Files that other programs keep beside data, and files whose names say that they are held out from training."""

import re
from collections.abc import Iterable

BOOKKEEPING = frozenset(
    {
        "dataset_dict.json",
        "dataset_info.json",
        "dataset_infos.json",
        "state.json",
        "croissant.json",
        "mixture.json",
    }
)
"""Descriptions of data sets, in JSON, that are no data."""
BOOKKEEPING_ENDS = (".report.json", ".rejects.jsonl", "rejects.jsonl.gz")
"""Ends of the names of what selection, scoring and preprocessing write beside their outputs."""

# As the datasets library finds splits: a word between separators or digits, in the name of a file or folder.
_WORDS = "test|testing|eval|evaluation|validation|valid|val|dev|held[-_.]?out"
HELD_OUT = re.compile(rf"(?:^|[^a-z])(?:{_WORDS})(?:$|[^a-z])")
TRAIN = re.compile(r"(?:^|[^a-z])train(?:ing)?(?:$|[^a-z])")


def is_bookkeeping(name: str) -> bool:
    """Whether a file of this name describes data rather than holding any."""
    return name in BOOKKEEPING or name.endswith(BOOKKEEPING_ENDS)


def is_held_out(parts: Iterable[str]) -> bool:
    """Whether the names of a file and of the folders above it say that it is for testing, and none that it is not."""
    names = [part.lower() for part in parts]
    return any(map(HELD_OUT.search, names)) and not any(map(TRAIN.search, names))
