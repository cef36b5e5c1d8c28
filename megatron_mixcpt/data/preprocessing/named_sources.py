"""Paths of a flag that may name them: ``--cpt law=cases/ statutes.jsonl --cpt replay=wiki/``."""

from collections.abc import Iterable, Sequence

from megatron_mixcpt.data.dataset_names import SOURCE_NAME
from megatron_mixcpt.errors import ConfigError


def read_sources(flag: str, given: Iterable[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The paths of each name, in order; of the name "" where none is given.

    A name before ``=`` holds for its path and those that follow it in the same occurrence of the flag; it may come
    again. What stands before ``=`` is a name if it consists of letters, digits, ``-`` and ``_``: ``./a=b`` is a path.

    Args:
        flag: what the paths were given to.
        given: the values of each occurrence of it.

    Raises:
        ConfigError: a name without a path, paths with and without a name.
    """
    found: dict[str, list[str]] = {}
    for values in given:
        name = ""
        for value in values:
            before, equals, path = value.partition("=")
            if equals and SOURCE_NAME.fullmatch(before):
                if not path:
                    raise ConfigError(f"{flag} {value}: no path follows the name {before}; give {before}=PATH")
                name = before
            else:
                path = value
            found.setdefault(name, []).append(path)
    if "" in found and len(found) > 1:
        named = next(name for name in found if name)
        raise ConfigError(
            f"{flag} {found[''][0]}: it has no name, while others are called {named}; give each path a name "
            f"({flag} NAME=PATH), or none"
        )
    return {name: tuple(paths) for name, paths in found.items()}


def as_given(name: str, paths: Iterable[str]) -> list[str]:
    """The values that stand for the paths of a name."""
    return [f"{name}={path}" if name else path for path in paths]
