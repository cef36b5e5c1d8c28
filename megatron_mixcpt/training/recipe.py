"""Recipes: a named set of default flags, and the paths that differ on every machine, ahead of the user's own flags.

The shipped examples are such recipes. Paths come from flags or, as schedulers like it, from the environment.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from megatron_mixcpt.errors import ConfigError, exit_on_user_error

# Environment variable -> the flag it stands for, and what the flag names.
PATHS = {
    "HF_MODEL": ("--hf-model", "the Hugging Face folder of the base model"),
    "MIXTURE": ("--mixture", "the folder written by tools/preprocess_mixture.py"),
    "SAVE": ("--save", "the folder for checkpoints, from which a restarted run also resumes"),
}


@exit_on_user_error
def run_recipe(main: Callable[[Sequence[str]], None], defaults: str) -> None:
    """Call a training entry with the recipe's flags, the environment's paths and the command line, the last winning.

    Args:
        main: an entry such as ``megatron_mixcpt.training.cpt.main``.
        defaults: flags as in a shell; ``#`` begins a comment.
    """
    main(recipe_argv(defaults, sys.argv[1:], os.environ))


def recipe_argv(defaults: str, argv: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The full command line of a recipe. Without ``--load`` the run resumes from where it saves.

    Raises:
        ConfigError: a path is neither in ``argv`` nor in ``environment``.
    """
    flags = shlex.split(defaults, comments=True)
    if "--help" in argv or "-h" in argv:
        return [*flags, *argv]
    values = {}
    for name, (flag, meaning) in PATHS.items():
        values[flag] = flag_value(argv, flag) or environment.get(name)
        if not values[flag]:
            raise ConfigError(f"neither {flag} nor the environment variable {name} is set: give {meaning}")
        flags += [flag, values[flag]]
    return [*flags, "--load", values["--save"], *argv]


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The last value that ``argv`` gives to ``flag``, as ``--flag value`` or ``--flag=value``, or None without one."""
    value = None
    for index, argument in enumerate(argv):
        if argument == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
