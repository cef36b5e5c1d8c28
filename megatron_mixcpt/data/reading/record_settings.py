"""What the user asks of the records of one kind, as far as it decides which records there are."""

from dataclasses import asdict, dataclass
from typing import Any

from megatron_mixcpt import flags
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.flags import setting


@dataclass(frozen=True)
class KindSettings:
    """Which records of a kind are used. The flags begin with the kind: ``--cpt-filter``."""

    paths: tuple[str, ...] = setting(default=(), is_flag=False)
    """Files, folders and globs, as given."""
    names: FieldNames = setting(default=FieldNames(), is_flag=False)
    preset: str | None = setting(default=None, metavar="NAME")
    """A known data set, which decides field names and filter; --list-presets lists them."""
    filter: str | None = setting(default=None, metavar="EXPRESSION")
    """Use only the records that fulfil this condition, for example 'score >= 0.7'."""


def described_kind(kind: str, settings: KindSettings) -> dict[str, Any]:
    """The settings of one kind that differ from their defaults, by flag."""
    defaults = flags.described(type(settings)(), kind)
    given = flags.described(settings, kind)
    described = {flag: value for flag, value in given.items() if value != defaults[flag]}
    for name, value in asdict(settings.names).items():
        if value != getattr(FieldNames, name):
            described[f"--{kind}-{name}-field"] = value
    return described
