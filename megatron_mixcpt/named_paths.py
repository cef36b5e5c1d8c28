"""Flags that give paths names: ``--perplexity French=texts/french.jsonl English=texts/english.jsonl``."""

from collections.abc import Sequence

from megatron_mixcpt.errors import ConfigError


def parse_named_paths(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=PATH`` of each value of ``flag``: name -> path, in order; a path may itself hold "=".

    Raises:
        ConfigError: another form, or a name that is given twice.
    """
    named: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not (name and path):
            raise ConfigError(f"{flag} {text}: expected NAME=PATH")
        if name in named:
            raise ConfigError(f"{flag} {text}: {name} is already {named[name]}; give each path a different name")
        named[name] = path
    return named
