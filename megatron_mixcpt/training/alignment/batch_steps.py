"""What a step of SFT and DPO is to the engine: a batch of samples, laid in as many rows as they take.

The engine counts in samples: its global batch is ``--global-batch-size`` of them, and so are the samples consumed, the
learning rate's steps and what the logs say, at any layout. How many microbatches a batch is, of how many rows and of
which length, is decided batch by batch (``data/datasets/row_plan.py``), and told to the engine's schedule here.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

from megatron.core.rerun_state_machine import get_rerun_state_machine

from megatron_mixcpt.data.datasets.row_plan import RowPlan
from megatron_mixcpt.training.engine.patches import Change


class BatchSteps:
    """Stands between the engine's training loop and its schedule.

    Args:
        args: the engine's arguments, of which ``consumed_train_samples`` is kept exact.
        train: the batches of the run.
        valid: the held-out samples, if there are any.
        rank: among the data parallel ranks.
    """

    def __init__(self, args: argparse.Namespace, train: RowPlan, valid: RowPlan | None, rank: int) -> None:
        self._args = args
        self._train = train
        self._valid = valid
        self._rank = rank
        self._next: int | None = None  # batch; None before the first

    def changes(self) -> list[Change]:
        """The changes to the engine."""
        makers: dict[str, Callable[[Any], Any]] = {
            "megatron.training.training.get_forward_backward_func": self._told,
            "megatron.training.training.dummy_train_step": lambda _: self._pass_over_a_batch,
            "megatron.training.training.consume_seqlen_stats_in_iteration": lambda _: self._positions,
        }
        return [Change(name, __name__, make) for name, make in makers.items()]

    def num_tokens(self, iteration: int) -> int:
        """Tokens of the batch of an iteration, counted from 1, without padding."""
        return self._train.batch(iteration - 1).num_positions

    def _told(self, get_forward_backward_func: Callable) -> Callable:
        """The engine's choice of a schedule, which is told what each batch is."""

        @functools.wraps(get_forward_backward_func)
        def get(*positional: Any, **named: Any) -> Callable:
            schedule = get_forward_backward_func(*positional, **named)

            @functools.wraps(schedule)
            def run(**options: Any) -> Any:
                return schedule(**options | (self._of_validation() if options["forward_only"] else self._of_batch()))

            return run

        return get

    def _of_batch(self) -> dict[str, int]:
        rows = self._train.batch(self._args.curr_iteration).ranks[self._rank]
        self._count_samples(self._args.curr_iteration)
        # The length matters to pipelines alone, whose microbatches all have this one.
        return {
            "num_microbatches": len(rows.lengths),
            "micro_batch_size": self._train.shape.micro_batch_size,
            "seq_length": rows.lengths[0],
        }

    def _of_validation(self) -> dict[str, int]:
        assert self._valid is not None
        return {"seq_length": self._valid.batch(0).ranks[self._rank].lengths[0]}

    def _count_samples(self, batch: int) -> None:
        """The engine adds a whole global batch after each step; the last of an epoch may be a smaller one."""
        consumed = self._train.order.num_samples_before(batch + 1)
        self._args.consumed_train_samples = consumed - self._args.global_batch_size
        self._next = batch + 1

    def _pass_over_a_batch(self, data_iterator: Iterator | list[Iterator]) -> None:
        """Take a batch from ``data_iterator``, one for each chunk of an interleaved pipeline, for a skipped step."""
        batch = self._args.iteration if self._next is None else self._next
        self._count_samples(batch)
        rerun_state_machine = get_rerun_state_machine()
        while rerun_state_machine.should_run_forward_backward(data_iterator):
            for iterator in data_iterator if isinstance(data_iterator, list) else [data_iterator]:
                for _ in range(self._train.num_microbatches(batch)):
                    next(iterator)

    def _positions(self) -> tuple[float, float]:
        """Tokens of the batch, and the sum of the squares of the documents' lengths, for the engine's throughput.

        In place of counts on the device, which take a collective and a wait in each step.
        """
        batch = self._train.batch(self._args.curr_iteration)
        return float(batch.num_positions), float(batch.num_positions_squared)
