"""Direct preference optimization (Mix-CPT Eq. 11): the policy against the frozen model that it starts from."""

import functools
import sys
from collections.abc import Sequence

from megatron.core.process_groups_config import ProcessGroupCollection
from torch.distributed import ProcessGroup

from megatron_mixcpt.config import DPOConfig
from megatron_mixcpt.rank_exit import exit_as_rank
from megatron_mixcpt.training.alignment.loss import LossFunc, dpo_loss_func
from megatron_mixcpt.training.alignment.prepare import AlignmentRun
from megatron_mixcpt.training.alignment.reference import ReferenceSums, precompute_reference
from megatron_mixcpt.training.alignment.run import Rows, start_alignment, train_alignment
from megatron_mixcpt.training.engine.console import quiet_terminal
from megatron_mixcpt.training.engine.launch import only_run, prepare_environment

# The paper's learning rate for Llama-3-8B (appendix); for Qwen2-7B it is 1e-7. Both ends of a pair share a row.
DEFAULTS = {"lr": 5e-7, "seq_length": 4096}

OUT_OF_MEMORY = (
    "try a smaller --micro-batch-size, --recompute-granularity, --precompute-reference, --lora-rank, or more "
    "tensor or pipeline parallel ranks"
)


@exit_as_rank(OUT_OF_MEMORY)
@quiet_terminal
def main(argv: Sequence[str] | None = None) -> None:
    """Train as the command line says; the engine's flags and those of :class:`DPOConfig`."""
    prepare_environment()
    argv = sys.argv[1:] if argv is None else argv
    with only_run(argv, DPOConfig):
        started = start_alignment(argv, DPOConfig, DEFAULTS)
        if started is not None:
            _train(*started)


def _train(run: AlignmentRun[DPOConfig], groups: ProcessGroupCollection) -> None:
    reference = precompute_reference(run, groups) if run.config.precompute_reference else None
    loss_func = functools.partial(_loss_func, run, reference, cp_group=groups.cp)
    train_alignment(run, groups, loss_func, _num_pairs, runs_reference=reference is None)


def _loss_func(
    run: AlignmentRun[DPOConfig], reference: ReferenceSums | None, rows: Rows, cp_group: ProcessGroup | None = None
) -> LossFunc:
    config = run.config
    return functools.partial(
        dpo_loss_func,
        rows.document,
        rows.sample.shape[1],
        None if reference is None else reference.of(rows.sample, rows.document.device),
        beta=config.beta,
        loss_type=config.loss,
        label_smoothing=config.dpo_label_smoothing,
        sft_coefficient=config.sft_coefficient,
        cp_group=cp_group,
    )


def _num_pairs(rows: Rows) -> float:
    """Documents of a pair follow each other; -1 stands for no document."""
    return float((rows.sample[:, 0::2] >= 0).sum())
