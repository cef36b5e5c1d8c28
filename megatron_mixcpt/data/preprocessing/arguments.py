"""The flags of ``tools/preprocess_mixture.py`` and the settings they make."""

import argparse
from dataclasses import replace
from pathlib import Path

from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.mixture.plan import parse_epochs, parse_kind_values, plan_mixture
from megatron_mixcpt.data.preprocessing.decontaminate import LEAST_WORDS, test_sets_digest
from megatron_mixcpt.data.preprocessing.near_duplicates import check_available
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.embedded_templates import BUILT_IN_RULES, choose_rules, read_rules
from megatron_mixcpt.data.reading.presets import PRESETS
from megatron_mixcpt.data.reading.record_flags import KIND_HELP, add_record_flags, record_settings
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.records import KINDS
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError


def build_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind in KINDS:
        text = f"{KIND_HELP[kind]}; files, folders, globs"
        parser.add_argument(f"--{kind}", nargs="+", default=[], metavar="PATH", help=text)
    parser.add_argument("--tokenizer", metavar="DIR", help="Hugging Face model or tokenizer folder")
    parser.add_argument("--output", metavar="DIR", help="folder to write")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that encode (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be read and written, and stop")
    _add_record_flags(parser)
    _add_step_flags(parser)
    for kind in KINDS:
        _add_kind_flags(parser, kind)
    _add_plan_flags(parser)
    return parser


def _add_record_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("bad records and special tokens")
    group.add_argument(
        "--on-bad-record",
        choices=("error", "skip"),
        default="error",
        help="stop at the first record that cannot be used (default), or list it in rejects.jsonl.gz and go on",
    )
    group.add_argument(
        "--max-rejects",
        default="100%",
        metavar="SHARE",
        help="with skip: fail if more of a kind's records are bad, e.g. 1%% (default 100%%)",
    )
    group.add_argument("--eos-token", metavar="TOKEN", help="what ends a sample (default: the tokenizer's eos_token)")
    group.add_argument(
        "--allow-special-tokens",
        action="store_true",
        help="let a special token's string in a text become that token (default: it stays ordinary text)",
    )


def _add_step_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is left out, and chat templates")
    group.add_argument("--keep-duplicates", action="store_true", help="keep samples with the text of an earlier one")
    group.add_argument(
        "--near-duplicates",
        nargs="?",
        const="0.8",
        metavar="SHARE",
        help="leave out samples whose runs of five words overlap an earlier one's by this share (80%% if not said)",
    )
    group.add_argument("--min-tokens", type=int, default=1, metavar="N", help="leave out shorter samples (default 1)")
    text = "test sets; leave out samples that share a long run of words with them"
    group.add_argument("--decontaminate", nargs="+", default=[], metavar="PATH", help=text)
    text = "how many words in a row (default 13)"
    group.add_argument("--decontaminate-words", type=int, default=13, metavar="N", help=text)
    text = "do not take these chat templates off (all, if none is named)"
    group.add_argument("--keep-templates", nargs="*", metavar="NAME", help=text)
    group.add_argument("--template-rules", metavar="FILE", help="JSON file with more chat templates to take off")
    group.add_argument("--list-templates", action="store_true", help="list the chat templates, and stop")
    group.add_argument("--list-presets", action="store_true", help="list the presets, and stop")


def _add_kind_flags(parser: argparse.ArgumentParser, kind: str) -> None:
    group = add_record_flags(parser, kind)
    group.add_argument(f"--{kind}-fraction", default="1", metavar="SHARE", help="keep this share, drawn by content")
    group.add_argument(f"--{kind}-max-tokens", type=int, metavar="N", help="keep the first samples up to N tokens")


def _add_plan_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what a training run would draw from a finished mixture")
    group.add_argument("--plan", metavar="DIR", help="print the plan for the mixture in DIR, and stop")
    group.add_argument("--seq-length", type=int, default=2048, metavar="N", help="in tokens (default 2048)")
    group.add_argument("--global-batch-size", type=int, default=1920, metavar="N", help="in sequences (default 1920)")
    group.add_argument("--split", default="100,0,0", metavar="PARTS", help="train, validation, test (default 100,0,0)")
    group.add_argument(
        "--epochs", default="1", metavar="E", help="passes, for all kinds or each: cpt=1,sft=2 (default 1)"
    )
    group.add_argument(
        "--mixture-weights", metavar="WEIGHTS", help="shares of the run's tokens: cpt=0.7,sft=0.2,dpo=0.1"
    )


def plan_text(arguments: argparse.Namespace) -> str:
    """What ``--plan`` prints. Raises ConfigError and DataError."""
    manifest = MixtureManifest.load(arguments.plan)
    weights = arguments.mixture_weights and parse_kind_values("--mixture-weights", arguments.mixture_weights)
    plan = plan_mixture(
        manifest,
        sequence_length=arguments.seq_length,
        split=arguments.split,
        epochs=parse_epochs(arguments.epochs),
        weights=weights or None,
    )
    return plan.table(arguments.global_batch_size)


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
    if arguments.min_tokens < 1 or arguments.decontaminate_words < LEAST_WORDS:
        raise ConfigError(f"--min-tokens must be at least 1, --decontaminate-words at least {LEAST_WORDS}")
    extra = read_rules(Path(arguments.template_rules)) if arguments.template_rules else ()
    return PreprocessSettings(
        kinds={kind: _kind_settings(kind, arguments) for kind in given},
        tokenizer=TokenizerFiles.read(arguments.tokenizer, arguments.eos_token),
        skip_bad_records=arguments.on_bad_record == "skip",
        max_rejects=parse_share("--max-rejects", arguments.max_rejects),
        min_tokens=arguments.min_tokens,
        allow_special_tokens=arguments.allow_special_tokens,
        keep_duplicates=arguments.keep_duplicates,
        near_duplicates=_near_duplicates(arguments.near_duplicates),
        decontaminate=tuple(arguments.decontaminate),
        test_sets_digest=test_sets_digest(arguments.decontaminate),
        decontaminate_words=arguments.decontaminate_words,
        template_rules=choose_rules(arguments.keep_templates, extra),
    )


def _near_duplicates(given: str | None) -> float | None:
    if given is None:
        return None
    check_available()
    share = parse_share("--near-duplicates", given)
    if share < 0.3:
        raise ConfigError(f"--near-duplicates {given}: below 30% unrelated texts are found; choose a larger share")
    return share


def _kind_settings(kind: str, arguments: argparse.Namespace) -> KindSettings:
    return replace(
        record_settings(kind, arguments),
        fraction=parse_share(f"--{kind}-fraction", getattr(arguments, f"{kind}_fraction")),
        max_tokens=getattr(arguments, f"{kind}_max_tokens"),
    )


def listing(arguments: argparse.Namespace) -> str | None:
    """What the flags print that print something and stop; None where none of them is given."""
    lines = [plan_text(arguments)] if arguments.plan else []
    if arguments.list_templates:
        lines += [f"{rule.name:<22}{rule.about}" for rule in BUILT_IN_RULES]
    if arguments.list_presets:
        lines += [f"{name:<22}{preset.kind}: {preset.about}" for name, preset in PRESETS.items()]
    return "\n".join(lines) or None


def parse_share(flag: str, text: str) -> float:
    """Read a share, ``1%`` or ``0.01``, as a number from 0 to 1. Raises ConfigError naming ``flag``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{flag} {text}: expected a share such as 1% or 0.01")
    return share
