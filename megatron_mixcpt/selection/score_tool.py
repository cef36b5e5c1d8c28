"""The program behind ``tools/score_alignment.py``, which imports it once the CPU emulation is in place."""

import sys
from collections.abc import Sequence

import torch.distributed as dist

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.inference.model_source import ModelSource
from megatron_mixcpt.selection.arguments import score_parser, score_settings
from megatron_mixcpt.selection.score import score_alignment

ABOUT = """Score instruction and preference samples: the format alignment score and the response's perplexity.

One line per sample, in the order of the input; those without a score are in FILE.rejects.jsonl with the reason. Started
again after an interruption, it goes on where it was. See docs/how-to/align.md."""


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, and score."""
    arguments = score_parser(ABOUT).parse_args(sys.argv[1:] if argv is None else argv)
    score_alignment(
        score_settings(arguments),
        ModelSource.open(hf_model=arguments.hf_model, load=arguments.load),
        arguments.output,
        tp_size=arguments.tensor_model_parallel_size,
        pp_size=arguments.pipeline_model_parallel_size,
    )
    dist.destroy_process_group()
