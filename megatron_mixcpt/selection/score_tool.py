"""The program behind ``tools/score_alignment.py``, which imports it once the CPU emulation is in place."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist

from megatron_mixcpt import flags
from megatron_mixcpt.data.reading.record_flags import add_record_flags, record_settings
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.rank_exit import exit_as_rank
from megatron_mixcpt.selection.score import score_alignment
from megatron_mixcpt.selection.settings import KINDS, ScoreSettings

ABOUT = """Score instruction and preference samples: the format alignment score (FAS) and the response's perplexity.

Writes one line per sample, in the order of the input; samples without a score are listed in FILE.rejects.jsonl with the
reason. Started again after an interruption, it continues where it stopped. See docs/how-to/align.md."""

OUT_OF_MEMORY = "try a smaller --batch-tokens, or more --tensor-model-parallel-size or --pipeline-model-parallel-size"


def build_parser() -> flags.Parser:
    """The parser of the command line."""
    parser = flags.build_parser(ABOUT, ScoreSettings)
    for kind in KINDS:
        add_record_flags(parser, kind)
    return parser


def settings_of(arguments: argparse.Namespace) -> ScoreSettings:
    """The settings that parsed flags describe. Raises ConfigError."""
    kinds: dict[str, KindSettings] = {
        kind: record_settings(kind, arguments) for kind in KINDS if getattr(arguments, kind)
    }
    return replace(flags.settings_from(arguments, ScoreSettings), kinds=kinds)


@exit_as_rank(OUT_OF_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, and score."""
    score_alignment(settings_of(build_parser().parse_args(argv)))
    dist.destroy_process_group()
