"""The flags of ``tools/score_alignment.py`` and ``tools/select_alignment.py``."""

import argparse
from pathlib import Path

from megatron_mixcpt.data.chat.templates import BUILT_IN_TEMPLATES
from megatron_mixcpt.data.reading.embedded_templates import choose_rules, read_rules
from megatron_mixcpt.data.reading.record_flags import KIND_HELP, add_record_flags, record_settings
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.selection.settings import ScoreSettings
from megatron_mixcpt.selection.strategies import STRATEGIES

KINDS = ("sft", "dpo")


def score_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the scoring tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--load", type=Path, metavar="DIR", help="Megatron checkpoint to score with; its latest iteration"
    )
    model.add_argument("--hf-model", type=Path, metavar="DIR", help="Hugging Face model folder to score with")
    for kind in KINDS:
        parser.add_argument(
            f"--{kind}", nargs="+", default=[], metavar="PATH", help=f"{KIND_HELP[kind]}; files, folders"
        )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="scores.jsonl to write")
    names = ", ".join(BUILT_IN_TEMPLATES)
    text = f"chat template: {names}, or a Jinja file (default: the tokenizer's own)"
    parser.add_argument("--chat-template", metavar="NAME|FILE", help=text)
    text = "longest query and response, in tokens; longer ones are not scored (default %(default)s)"
    parser.add_argument("--seq-length", type=int, default=ScoreSettings.seq_length, metavar="N", help=text)
    _add_run_flags(parser)
    text = "do not take these chat templates off the data's text (all, if none is named)"
    parser.add_argument("--keep-templates", nargs="*", metavar="NAME", help=text)
    parser.add_argument("--template-rules", metavar="FILE", help="JSON file with more chat templates to take off")
    for kind in KINDS:
        add_record_flags(parser, kind)
    return parser


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how the model runs (under torchrun; ranks beyond TP x PP are data parallel)")
    group.add_argument("--tensor-model-parallel-size", type=int, default=1, metavar="TP", help="default 1")
    group.add_argument("--pipeline-model-parallel-size", type=int, default=1, metavar="PP", help="default 1")
    text = "of weights and computation (default %(default)s)"
    group.add_argument("--dtype", choices=["bfloat16", "float32"], default=ScoreSettings.dtype, help=text)
    text = "most tokens in a batch, padding included (default %(default)s)"
    group.add_argument("--batch-tokens", type=int, default=ScoreSettings.batch_tokens, metavar="N", help=text)


def score_settings(arguments: argparse.Namespace) -> ScoreSettings:
    """Check the flags and make settings of them. Raises ConfigError."""
    given = [kind for kind in KINDS if getattr(arguments, kind)]
    if not given:
        raise ConfigError("nothing to score: give --sft, --dpo or both")
    for name in ("seq_length", "batch_tokens"):
        if getattr(arguments, name) < 2:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: expected at least 2")
    extra = read_rules(Path(arguments.template_rules)) if arguments.template_rules else ()
    return ScoreSettings(
        kinds={kind: record_settings(kind, arguments) for kind in given},
        template_rules=choose_rules(arguments.keep_templates, extra),
        chat_template=arguments.chat_template,
        seq_length=arguments.seq_length,
        dtype=arguments.dtype,
        batch_tokens=arguments.batch_tokens,
    )


def select_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the selection tool's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True, metavar="FILE", help="from tools/score_alignment.py")
    parser.add_argument("--kind", choices=KINDS, required=True, help="which of its samples")
    about = "; ".join(f"{name}: {strategy.about}" for name, strategy in STRATEGIES.items())
    parser.add_argument("--strategy", choices=list(STRATEGIES), default="high", help=f"{about} (default: high)")
    parser.add_argument("--top-k", type=int, default=10_000, metavar="K", help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the strategy random (default 0)")
    text = "JSONL to write: training's --sft or --dpo; beside it FILE.report.json and FILE.png"
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=text)
    text = "also list, a line per sample, why the others were left out"
    parser.add_argument("--rejects", type=Path, metavar="FILE", help=text)
    return parser
