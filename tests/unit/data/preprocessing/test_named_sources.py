"""NAME=PATH on the command line: what is a name, what is a path, and how far a name reaches."""

import pytest

from megatron_mixcpt.data.preprocessing.named_sources import as_given, read_sources
from megatron_mixcpt.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([["a", "b"], ["c"]], {"": ("a", "b", "c")}),
        ([["law=a", "b"], ["replay=c"]], {"law": ("a", "b"), "replay": ("c",)}),
        ([["law=a", "law=b", "re-play_2=c"], ["law=d"]], {"law": ("a", "b", "d"), "re-play_2": ("c",)}),
        ([["./a=b.jsonl", "data/lang=en/x.parquet"]], {"": ("./a=b.jsonl", "data/lang=en/x.parquet")}),
        ([["law=data/lang=en/x.parquet"]], {"law": ("data/lang=en/x.parquet",)}),
    ],
)
def test_names_and_paths(given: list[list[str]], expected: dict[str, tuple[str, ...]]) -> None:
    assert read_sources("--cpt", given) == expected
    flat = [[value for name, paths in expected.items() for value in as_given(name, paths)]]
    assert read_sources("--cpt", flat) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([["law=a"], ["b"]], "--cpt b: it has no name, while others are called law; give each path a name"),
        ([["a", "law=b"]], "--cpt a: it has no name"),
        ([["law="]], "--cpt law=: no path follows the name law; give law=PATH"),
    ],
)
def test_others_are_refused(given: list[list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sources("--cpt", given)
