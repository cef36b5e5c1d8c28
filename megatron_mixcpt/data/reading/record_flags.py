"""The flags that say how rows become records of a kind, shared by preprocessing and scoring."""

import argparse
from dataclasses import replace

from megatron_mixcpt import flags
from megatron_mixcpt.data.reading.field_names import FIELDS_OF_KIND, FieldNames
from megatron_mixcpt.data.reading.presets import preset_for
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.row_filter import RowFilter

KIND_HELP = {
    "cpt": "documents of the domain",
    "sft": "instruction samples: messages, prompt and response, or instruction, input and output",
    "dpo": "preferences: prompt, chosen and rejected",
}


def add_record_flags(
    parser: argparse.ArgumentParser, kind: str, settings_class: type[KindSettings] = KindSettings
) -> None:
    """Add the flags that say how rows become records of ``kind``; :func:`record_settings` reads them."""
    group = parser.add_argument_group(f"{kind}: which records, and what their fields are called")
    flags.add_flags(group, settings_class, prefix=kind)
    for name in FIELDS_OF_KIND[kind]:
        text = f"Name of the field that holds this (default: {getattr(FieldNames, name)})"
        group.add_argument(f"--{kind}-{name}-field", metavar="NAME", help=text)


def record_settings[S: KindSettings](
    kind: str,
    arguments: argparse.Namespace,
    settings_class: type[S] = KindSettings,  # type: ignore[assignment]  # a default of a generic parameter
) -> S:
    """The settings of one kind. Raises ConfigError."""
    settings = flags.settings_from(arguments, settings_class, kind)
    preset = preset_for(kind, settings.preset)
    if settings.filter:
        RowFilter(settings.filter, f"--{kind}-filter")  # refused here rather than in a worker
    given = {name: getattr(arguments, f"{kind}_{name}_field", None) for name in FIELDS_OF_KIND[kind]}
    names = preset.names | {name: value for name, value in given.items() if value is not None}
    return replace(settings, paths=tuple(getattr(arguments, kind)), names=FieldNames(**names))
