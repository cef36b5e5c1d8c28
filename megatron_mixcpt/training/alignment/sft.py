"""Supervised fine-tuning (Mix-CPT Eq. 10): next-token prediction on the assistant's turns, in the chat template."""

import functools
import sys
from collections.abc import Sequence

from megatron_mixcpt.config import SFTConfig
from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal
from megatron_mixcpt.data.datasets.packed_rows import Sample, conversation_sample
from megatron_mixcpt.data.records import Conversation
from megatron_mixcpt.rank_exit import exit_as_rank
from megatron_mixcpt.training.alignment.arguments import parse_alignment_run
from megatron_mixcpt.training.alignment.loss import LossFunc, sft_loss_func
from megatron_mixcpt.training.alignment.run import Rows, train_alignment
from megatron_mixcpt.training.alignment.summary import describe
from megatron_mixcpt.training.engine.console import quiet_terminal, show_start
from megatron_mixcpt.training.engine.launch import prepare_environment, start_distributed

# The paper's learning rate for Llama-3-8B (appendix); for Qwen2-7B it is 5e-7.
DEFAULTS = {"lr": 5e-6}

OUT_OF_MEMORY = "try a smaller --micro-batch-size, --recompute-granularity, or more tensor or pipeline parallel ranks"


@exit_as_rank(OUT_OF_MEMORY)
@quiet_terminal
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; the engine's flags and those of :class:`SFTConfig`."""
    prepare_environment()
    argv = sys.argv[1:] if argv is None else argv
    run = parse_alignment_run(argv, SFTConfig, kind="sft", encode=encode, defaults=DEFAULTS)
    show_start(run.args, run.config, describe(run))
    if not run.config.dry_run:
        train_alignment(run, start_distributed(), _loss_func, runs_reference=False)


def encode(encoder: ChatEncoder, record: Conversation) -> Sample | Refusal:
    """A conversation as a sample, or why not."""
    (encoded,) = encoder.encode_conversations([record])
    return encoded if isinstance(encoded, Refusal) else conversation_sample(encoded)


def _loss_func(rows: Rows) -> LossFunc:
    return functools.partial(sft_loss_func, rows.batch.loss_mask)
