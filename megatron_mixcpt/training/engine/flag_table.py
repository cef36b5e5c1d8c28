"""Every flag of the engine, each in one class: served, of the model, or refused.

The trainers go by it: an explicit flag that no class names is refused, so that what an upgrade of the engine brings is
never taken unseen. ``python -m megatron_mixcpt.training.engine.flag_table`` prints it.
"""

import functools
from typing import Any, Literal, NamedTuple

from megatron.training.arguments import add_megatron_arguments

from megatron_mixcpt.flags import Parser
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_ENGINE_ARGUMENTS
from megatron_mixcpt.training.engine.refused_flags import REFUSED
from megatron_mixcpt.training.engine.served_flags import OF_THE_MODEL, SERVED

FlagClass = Literal["served", "served, may differ on resume", "the model's", "refused"]


class EngineArgument(NamedTuple):
    """An argument of the engine's parser."""

    flag: str
    """The first of its flags that does not belong to another argument as well."""
    default: Any


@functools.cache
def engine_arguments() -> dict[str, EngineArgument]:
    """The engine's arguments by name, in its order."""
    found: dict[str, EngineArgument] = {}
    for action in add_megatron_arguments(Parser())._actions:  # argparse has no public list of them
        if action.option_strings and action.dest != "help":
            found.setdefault(action.dest, EngineArgument(action.option_strings[0], action.default))
    return found


def flag_of(name: str) -> str:
    """The flag of an engine argument, such as ``--no-mmap-bin-files`` for ``mmap_bin_files``."""
    return engine_arguments()[name].flag


def classes_of(name: str) -> dict[FlagClass, str]:
    """The classes that name an engine argument, each with its reason or subject; exactly one for every argument."""
    tables: dict[FlagClass, dict[str, str]] = {
        "refused": REFUSED,
        "the model's": dict.fromkeys(OF_THE_MODEL, "config.json decides it"),
        "served": SERVED,
        "served, may differ on resume": HARMLESS_ENGINE_ARGUMENTS,
    }
    return {kind: table[name] for kind, table in tables.items() if name in table}


def main() -> None:
    """Print the table."""
    for name, argument in engine_arguments().items():
        for kind, reason in classes_of(name).items():
            print(f"{argument.flag:<60}{kind:<31}{reason}")


if __name__ == "__main__":
    main()
