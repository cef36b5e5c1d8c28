"""The names by which PEFT is told which modules of a model have an adapter: as short as they can be."""

from collections import Counter
from collections.abc import Collection, Iterator


def target_modules(adapted: Collection[str], every: Collection[str]) -> list[str]:
    """The shortest ends of names that select, among a model's modules, those with an adapter and no other; sorted.

    PEFT adapts each module whose name is an entry, or ends with a dot and an entry
    (``peft.tuners.tuners_utils.check_target_module_exists``).

    Args:
        adapted: modules with an adapter.
        every: all modules of the model.
    """
    selected = Counter(end for name in every for end in _ends(name))
    wanted = Counter(end for name in adapted for end in _ends(name))
    return sorted({_shortest(name, {end for end in _ends(name) if wanted[end] == selected[end]}) for name in adapted})


def _shortest(name: str, exact: Collection[str]) -> str:
    """An end of a name that is exact; the name itself where a shorter one would hold a layer's number."""
    first = min(exact, key=len, default=name)
    return name if any(part.isdigit() for part in first.split(".")) else first


def _ends(name: str) -> Iterator[str]:
    """``c``, ``b.c`` and ``a.b.c`` of ``a.b.c``."""
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))
