"""Supervised fine-tuning (Mix-CPT Eq. 10): next-token prediction on the assistant's turns, in the chat template."""

import functools
import sys
from collections.abc import Sequence

from megatron_mixcpt.config import SFTConfig
from megatron_mixcpt.rank_exit import exit_as_rank
from megatron_mixcpt.training.alignment.loss import LossFunc, sft_loss_func
from megatron_mixcpt.training.alignment.run import Rows, start_alignment, train_alignment
from megatron_mixcpt.training.engine.console import quiet_terminal
from megatron_mixcpt.training.engine.launch import only_run, prepare_environment

# The paper's learning rate for Llama-3-8B (appendix); for Qwen2-7B it is 5e-7.
DEFAULTS = {"lr": 5e-6}

OUT_OF_MEMORY = (
    "try a smaller --micro-batch-size, --recompute-granularity, --lora-rank, or more tensor or pipeline parallel ranks"
)


@exit_as_rank(OUT_OF_MEMORY)
@quiet_terminal
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; the engine's flags and those of :class:`SFTConfig`."""
    prepare_environment()
    argv = sys.argv[1:] if argv is None else argv
    with only_run(argv, SFTConfig):
        started = start_alignment(argv, SFTConfig, DEFAULTS)
        if started is not None:
            train_alignment(*started, _loss_func, _num_tokens, runs_reference=False)


def _loss_func(rows: Rows) -> LossFunc:
    return functools.partial(sft_loss_func, rows.batch.loss_mask)


def _num_tokens(rows: Rows) -> float:
    return rows.num_tokens
