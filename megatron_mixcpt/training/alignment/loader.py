"""Hands the engine the microbatches of this rank, in order, from the batch on that a run goes on with.

Worker processes of the data loader cut them out of the files that hold the samples.
"""

from collections.abc import Callable, Iterator
from typing import Any

from megatron.training import get_args
from megatron.training.dist_signal_handler import DistributedSignalHandler
from torch.utils.data import DataLoader, Sampler

from megatron_mixcpt.data.datasets.packed_rows import PackedMicrobatches
from megatron_mixcpt.data.datasets.row_plan import RowPlan
from megatron_mixcpt.training.alignment.prepare import AlignmentRun


def dataset_provider(run: AlignmentRun, rank: int) -> Callable:
    """What ``pretrain()`` calls for the training, validation and test data, on every rank.

    The engine takes them as they are (``--dataloader-type external``): an iterator, a loader for each validation set.

    Args:
        run: the run.
        rank: among the data parallel ranks.
    """

    def provide(num_samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Any, ...]:
        valid = [_loader(run, run.valid, rank, 0)] if run.valid else None
        return iter(_loader(run, run.train, rank, get_args().iteration)), valid, None

    provide.is_distributed = True  # type: ignore[attr-defined] # the engine's word for "build on every rank"
    return provide


class _InOrder(Sampler):
    """Keys of microbatches from a batch on."""

    def __init__(self, microbatches: PackedMicrobatches, first_batch: int) -> None:
        self._microbatches = microbatches
        self._first_batch = first_batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return self._microbatches.keys(self._first_batch)

    def __len__(self) -> int:
        plan = self._microbatches.plan
        return sum(plan.num_microbatches(batch) for batch in range(self._first_batch, plan.order.num_batches))


def _loader(run: AlignmentRun, plan: RowPlan, rank: int, first_batch: int) -> DataLoader:
    args = get_args()
    microbatches = PackedMicrobatches(run.samples, plan, rank, pad_id=run.encoder.eos_id)
    return DataLoader(
        microbatches,
        batch_size=None,
        sampler=_InOrder(microbatches, first_batch),
        num_workers=args.num_workers,
        pin_memory=True,
        persistent_workers=args.num_workers > 0,
        worker_init_fn=_leave_signals if args.num_workers and args.exit_signal_handler else None,
    )


def _leave_signals(worker: int) -> None:
    """A worker goes on when the scheduler's signal comes, so that the step under way can end, as in the engine."""
    DistributedSignalHandler(get_args().exit_signal).__enter__()
