"""Complete validation sets: every sequence is measured once, each set has its own figures, from iteration 0 on.

A set is what is held out of one kind of data, or what ``--validation`` names. What the domain gains and what the rest
loses is then on one chart from before the first step. The sets are the engine's (``--multiple-validation-sets
--full-validation``); it names their figures ``ntp loss validation-cpt`` and so on. Left to itself it would run each set
as often as an evaluation has microbatches, hand out interleaved pipelines' iterators in the wrong order, and measure
for the first time after ``--eval-interval`` iterations.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from megatron.training import get_args, training
from torch.utils.data import Dataset

from megatron_mixcpt.parallel_sizes import ParallelSizes
from megatron_mixcpt.training.engine.patches import Change

# Microbatches of one evaluation step for each pipeline stage: few of the stages' turns are then spent waiting.
_MICROBATCHES_PER_STAGE = 4


class PaddedSamples(Dataset):
    """A dataset filled up to a multiple of ``multiple`` with samples whose every token is masked.

    All ranks then have equally many batches, and every sample counts once.
    """

    def __init__(self, dataset: Dataset, multiple: int) -> None:
        self.dataset = dataset
        self.multiple = multiple
        self.split = dataset.split

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.dataset):
            return self.dataset[index]
        sample = self.dataset[0]
        return sample | {"loss_mask": torch.zeros_like(sample["loss_mask"])}


def validation_settings(names: list[str], sizes: ParallelSizes) -> dict[str, Any]:
    """Engine arguments that measure the datasets with these names completely."""
    is_pipeline = sizes.pipeline > 1
    microbatches = max(_MICROBATCHES_PER_STAGE * sizes.pipeline, sizes.microbatch_group) if is_pipeline else 1
    return {
        "full_validation": True,
        "multiple_validation_sets": True,
        "validation_set_names": names,
        "eval_micro_batch_size": 1,  # the only one that the engine's sampler of whole sets knows
        "eval_global_batch_size": microbatches * sizes.data,
    }


def each_set_once_from_the_start() -> list[Change]:
    """Changes to the engine's training loop, for runs with ``--full-validation``: see the module's text."""
    return [
        Change("megatron.training.training.evaluate_and_print_results", __name__, _each_set_once),
        Change("megatron.training.training.train", __name__, _measured_before_the_first_step),
    ]


def _each_set_once(evaluate_and_print_results: Callable) -> Callable:
    @functools.wraps(evaluate_and_print_results)
    def evaluate(prefix: str, forward_step_func: Callable, data_iterator: Any, *rest: Any, **options: Any) -> None:
        args = get_args()
        if args.virtual_pipeline_model_parallel_size:
            data_iterator = [list(stages) for stages in zip(*data_iterator, strict=True)]
        num_microbatches = args.eval_iters
        per_step = args.eval_global_batch_size // (args.eval_micro_batch_size * args.data_parallel_size)
        args.eval_iters = [count // per_step for count in num_microbatches]
        try:
            evaluate_and_print_results(prefix, forward_step_func, data_iterator, *rest, **options)
        finally:
            args.eval_iters = num_microbatches

    return evaluate


def _measured_before_the_first_step(train: Callable) -> Callable:
    @functools.wraps(train)
    def measured(*positional: Any, **named: Any) -> Any:
        args = get_args()
        if args.do_valid and args.iteration == 0:
            _measure(args, inspect.signature(train).bind(*positional, **named).arguments)
        return train(*positional, **named)

    return measured


def _measure(args: Any, call: dict[str, Any]) -> None:
    """Evaluate with what the training loop is about to be called with."""
    overlapped = training.should_disable_forward_pre_hook(args)
    if overlapped:  # as the engine does around its own evaluations
        training.disable_forward_pre_hook(call["model"], param_sync=False)
    training.evaluate_and_print_results(
        "iteration 0",
        call["forward_step_func"],
        call["valid_data_iterator"],
        call["model"],
        0,
        call["process_non_loss_data_func"],
        call["config"],
        non_loss_data_func=call.get("non_loss_data_func"),
        pg_collection=call.get("pg_collection"),
        p2p_communicator=call.get("p2p_communicator"),
    )
    if overlapped:
        training.enable_forward_pre_hook(call["model"])
