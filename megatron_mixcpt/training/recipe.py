"""Recipes: a named set of default flags, and the paths that differ on every machine, ahead of the user's own flags.

The shipped examples are such recipes. Paths come from flags or, as schedulers like it, from the environment.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

from megatron_mixcpt.errors import ConfigError, exit_on_user_error

Paths = Mapping[str, tuple[str, str]]
"""Environment variable -> the flag that it stands for, and what the flag names."""

SAVE = ("--save", "the folder for checkpoints, from which a restarted run also resumes")
PRETRAIN_PATHS: Paths = {
    "HF_MODEL": ("--hf-model", "the Hugging Face folder of the base model"),
    "MIXTURE": ("--mixture", "the folder written by tools/preprocess_mixture.py"),
    "SAVE": SAVE,
}
SFT_PATHS: Paths = {
    "LOAD": ("--load", "the checkpoint of continual pre-training (or give --hf-model)"),
    "SFT": ("--sft", "the conversations, from tools/select_alignment.py"),
    "SAVE": SAVE,
}
DPO_PATHS: Paths = {
    "LOAD": ("--load", "the checkpoint of supervised fine-tuning (or give --hf-model)"),
    "DPO": ("--dpo", "the preference pairs, from tools/select_alignment.py"),
    "SAVE": SAVE,
}


@exit_on_user_error
def run_recipe(main: Callable[[Sequence[str]], None], defaults: str, paths: Paths = PRETRAIN_PATHS) -> None:
    """Call a training entry with the recipe's flags, the environment's paths and the command line, the last winning.

    Args:
        main: an entry such as ``megatron_mixcpt.training.pretraining.cpt.main``.
        defaults: flags as in a shell; ``#`` begins a comment.
        paths: what the entry needs.
    """
    main(recipe_argv(defaults, sys.argv[1:], os.environ, paths))


def recipe_argv(
    defaults: str, argv: Sequence[str], environment: Mapping[str, str], paths: Paths = PRETRAIN_PATHS
) -> list[str]:
    """The full command line of a recipe. Where ``--load`` names no model, the run resumes by it from where it saves.

    Raises:
        ConfigError: a path is neither in ``argv`` nor in ``environment``.
    """
    flags = shlex.split(defaults, comments=True)
    if "--help" in argv or "-h" in argv:
        return [*flags, *argv]
    for name, (flag, meaning) in paths.items():
        if flag == "--load" and flag_value(argv, "--hf-model"):
            continue
        value = flag_value(argv, flag) or environment.get(name)
        if not value:
            raise ConfigError(f"neither {flag} nor the environment variable {name} is set: give {meaning}")
        flags += [flag, value]
    if "LOAD" not in paths and (save := flag_value(flags, "--save")):
        flags += ["--load", save]
    return [*flags, *argv]


def flag_value(argv: Sequence[str], flag: str) -> str | None:
    """The last value that ``argv`` gives to ``flag``, as ``--flag value`` or ``--flag=value``, or None without one."""
    value = None
    for index, argument in enumerate(argv):
        if argument == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
