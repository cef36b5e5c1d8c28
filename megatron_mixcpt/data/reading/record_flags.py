"""The flags that say how rows become records of a kind, shared by preprocessing and scoring."""

import argparse

from megatron_mixcpt.data.reading.presets import preset_for
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.row_filter import RowFilter
from megatron_mixcpt.data.records import FIELDS_OF_KIND, FieldNames

KIND_HELP = {
    "cpt": "documents of the domain",
    "sft": "instruction samples: messages, prompt and response, or instruction, input and output",
    "dpo": "preferences: prompt, chosen and rejected",
}


def add_record_flags(parser: argparse.ArgumentParser, kind: str) -> argparse._ArgumentGroup:
    """Add the flags that say how rows become records of ``kind``; :func:`record_settings` reads them."""
    group = parser.add_argument_group(f"{kind}: which records, and what their fields are called")
    group.add_argument(f"--{kind}-preset", metavar="NAME", help="a known data set, see --list-presets")
    group.add_argument(f"--{kind}-filter", metavar="EXPRESSION", help="keep such records: 'score >= 0.7'")
    for name in FIELDS_OF_KIND[kind]:
        text = f"default {getattr(FieldNames, name)}"
        group.add_argument(f"--{kind}-{name}-field", metavar="NAME", help=text)
    return group


def record_settings(kind: str, arguments: argparse.Namespace) -> KindSettings:
    """The settings of one kind, but for how much of it is kept. Raises ConfigError."""
    preset_name, condition = (getattr(arguments, f"{kind}_{name}") for name in ("preset", "filter"))
    names = {name: getattr(arguments, f"{kind}_{name}_field") for name in FIELDS_OF_KIND[kind]}
    preset = preset_for(kind, preset_name)
    if condition:
        RowFilter(condition, f"--{kind}-filter")  # refused here rather than in a worker
    return KindSettings(
        paths=tuple(getattr(arguments, kind)),
        names=FieldNames(**(preset.names | {name: value for name, value in names.items() if value is not None})),
        preset=preset_name,
        filter=condition,
    )
