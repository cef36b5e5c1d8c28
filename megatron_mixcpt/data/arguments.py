"""The flags of ``tools/preprocess_mixture.py`` and the settings they make."""

import argparse
from dataclasses import fields

from megatron_mixcpt.data.manifest import KINDS
from megatron_mixcpt.data.records import FIELDS_OF_KIND, FieldNames
from megatron_mixcpt.data.settings import KindSettings, PreprocessSettings
from megatron_mixcpt.data.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError

KIND_HELP = {
    "cpt": "documents of the domain",
    "sft": "instruction samples: messages, prompt and response, or instruction, input and output",
    "dpo": "preferences: prompt, chosen and rejected",
}


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        text = f"{KIND_HELP[kind]}; files, folders, globs"
        parser.add_argument(f"--{kind}", nargs="+", default=[], metavar="PATH", help=text)
    parser.add_argument("--tokenizer", metavar="DIR", help="Hugging Face model or tokenizer folder")
    parser.add_argument("--output", metavar="DIR", help="folder to write")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that encode (default 1)")
    parser.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        default="error",
        help="stop at the first record that cannot be used (default), or list it in rejects.jsonl.gz and go on",
    )
    parser.add_argument(
        "--max-rejects",
        default="100%",
        metavar="SHARE",
        help="with skip: fail if more of a kind's records are bad, e.g. 1%% (default 100%%)",
    )
    parser.add_argument("--eos-token", metavar="TOKEN", help="what ends a sample (default: the tokenizer's eos_token)")
    parser.add_argument(
        "--allow-special-tokens",
        action="store_true",
        help="let a special token's string in a text become that token (default: it stays ordinary text)",
    )
    parser.add_argument("--keep-duplicates", action="store_true", help="keep samples with the text of an earlier one")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read and written, and stop")
    for kind in KINDS:
        group = parser.add_argument_group(f"field names of {kind} records")
        for name in FIELDS_OF_KIND[kind]:
            default = getattr(FieldNames, name)
            group.add_argument(f"--{kind}-{name}-field", default=default, metavar="NAME", help=f"default {default}")
    return parser


def settings_from(arguments: argparse.Namespace) -> PreprocessSettings:
    """Check the flags and make settings of them. Raises ConfigError or CheckpointError."""
    given = [kind for kind in KINDS if getattr(arguments, kind)]
    if not given:
        raise ConfigError("nothing to preprocess: give at least one of --cpt, --sft and --dpo")
    for name in ("tokenizer", "output"):
        if getattr(arguments, name) is None:
            raise ConfigError(f"--{name} is missing")
    if arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: expected at least 1")
    return PreprocessSettings(
        kinds={kind: _kind_settings(kind, arguments) for kind in given},
        tokenizer=TokenizerFiles.read(arguments.tokenizer, arguments.eos_token),
        skip_bad_records=arguments.on_bad_record == "skip",
        max_rejects=parse_share("--max-rejects", arguments.max_rejects),
        allow_special_tokens=arguments.allow_special_tokens,
        keep_duplicates=arguments.keep_duplicates,
    )


def _kind_settings(kind: str, arguments: argparse.Namespace) -> KindSettings:
    names = {name: getattr(arguments, f"{kind}_{name}_field") for name in FIELDS_OF_KIND[kind]}
    assert set(names) <= {field.name for field in fields(FieldNames)}
    return KindSettings(tuple(getattr(arguments, kind)), FieldNames(**names))


def parse_share(flag: str, text: str) -> float:
    """Read a share, ``1%`` or ``0.01``, as a number from 0 to 1. Raises ConfigError naming ``flag``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{flag} {text}: expected a share such as 1% or 0.01")
    return share
