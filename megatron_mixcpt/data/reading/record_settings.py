"""What the user asks of the records of one kind, as far as it decides which samples there are."""

from dataclasses import dataclass, field
from typing import Any

from megatron_mixcpt.data.records import FieldNames


@dataclass(frozen=True)
class KindSettings:
    """What is asked for one kind."""

    paths: tuple[str, ...]
    """Files, folders and globs, as given."""
    names: FieldNames = field(default_factory=FieldNames)
    preset: str | None = None
    """A name of ``presets.PRESETS``."""
    filter: str | None = None
    """A condition in the language of ``row_filter.py``; records that do not fulfil it are left out."""
    fraction: float = 1.0
    """Share of the records to keep, chosen by their content."""
    max_tokens: int | None = None
    """Keep samples, in order, while they are no more than these tokens together."""


def described_kind(kind: str, settings: KindSettings) -> dict[str, Any]:
    """The settings of one kind that differ from their defaults."""
    given = {name: value for name, value in vars(settings).items() if name not in ("paths", "names")}
    described = {
        f"--{kind}-{name.replace('_', '-')}": value
        for name, value in given.items()
        if value != KindSettings.__dataclass_fields__[name].default
    }
    for name, value in vars(settings.names).items():
        if value != getattr(FieldNames, name):
            described[f"--{kind}-{name}-field"] = value
    return described
