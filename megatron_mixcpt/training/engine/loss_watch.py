"""Losses and gradients that go wrong: NaN and Inf stop the run, spikes are reported, both with the samples at fault.

Gradients are checked by the engine before ranks exchange them (--check-for-nan-in-loss-and-grad, on by default), the
loss once a step, where the engine waits for the device anyway. What the samples are called is looked up in the report.
"""

import argparse
import functools
import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from megatron.training import get_args
from torch import Tensor
from torch.utils.data import Dataset

from megatron_mixcpt.conversion.megatron_iterations import choose_checkpoint
from megatron_mixcpt.errors import CheckpointError, NumbersError
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.patches import Change

DescribeSample = Callable[[Dataset, int], str]
"""From the training dataset and an index into it to the names of what is there, for a report."""

_WINDOW = 100
_FEWEST = 20  # losses before the first spike is reported
_MOST_NAMED = 4  # sequences of a report


class Microbatch(NamedTuple):
    """What is kept of each microbatch until the next step."""

    samples: list[int]
    """Indices into the training dataset."""
    loss: Tensor | None
    """Sum and count, float32 [2], on the device; None where the pipeline's last stage is elsewhere."""

    def mean(self) -> float:
        """The mean loss; waits for the device."""
        assert self.loss is not None, "only the last stage has losses"
        total, count = self.loss.tolist()
        return total / max(count, 1.0)


class SpikeRule:
    """A loss more than ``sigma`` standard deviations above the mean of those of the last 100 steps is a spike.

    Until 20 are there, none is. Spikes count in the mean of the steps to come. ``sigma`` 0: nothing is a spike.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self._window: deque[float] = deque(maxlen=_WINDOW)

    def limit(self, loss: float) -> float | None:
        """The greatest loss that would have been none, where ``loss``, which joins the window, is a spike."""
        window, limit = list(self._window), math.inf
        if self.sigma and len(window) >= _FEWEST:
            mean = math.fsum(window) / len(window)
            limit = mean + self.sigma * math.sqrt(math.fsum((x - mean) ** 2 for x in window) / len(window))
        self._window.append(loss)
        return limit if loss > limit else None


class LossWatch:
    """Stands between the engine's training loop and the forward step, the datasets and the training step.

    Args:
        args: the engine's arguments.
        sigma: see :class:`SpikeRule`.
        describe: names the samples of a report.
    """

    def __init__(self, args: argparse.Namespace, sigma: float, describe: DescribeSample) -> None:
        self._args = args
        self._rule = SpikeRule(sigma)
        self._describe = describe
        self._dataset: Dataset | None = None
        self._microbatches: list[Microbatch] = []

    def datasets(self, provide: Callable) -> Callable:
        """The dataset provider, whose training dataset is remembered."""

        @functools.wraps(provide)
        def remembering(*positional: Any, **named: Any) -> tuple[Any, ...]:
            sets = provide(*positional, **named)
            self._dataset = sets[0]
            return sets

        return remembering

    def forward_step(self, forward_step: Callable) -> Callable:
        """The forward step; of training's microbatches samples and losses are kept, on the device."""

        @functools.wraps(forward_step)
        def watched(data_iterator: Iterator, model: torch.nn.Module) -> tuple[Any, Callable]:
            if not torch.is_grad_enabled():
                return forward_step(data_iterator, model)
            samples: list[int] = []
            output, loss_func = forward_step(_noting(data_iterator, samples), model)
            self._microbatches.append(Microbatch(samples, None))
            return output, functools.partial(self._noting_loss, loss_func, len(self._microbatches) - 1)

        return watched

    def _noting_loss(self, loss_func: Callable, place: int, output: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loss, num_tokens, report = loss_func(output)
        self._microbatches[place] = self._microbatches[place]._replace(loss=report["loss"])
        return loss, num_tokens, report

    def train_step(self, train_step: Callable) -> Callable:
        """The engine's ``train_step``, which raises :class:`NumbersError` and reports spikes."""

        signature = inspect.signature(train_step)

        @functools.wraps(train_step)
        def watched(*positional: Any, **named: Any) -> tuple:
            iteration = signature.bind(*positional, **named).arguments["iteration"]
            self._microbatches.clear()
            try:
                result = train_step(*positional, **named)
            except _RejectedError as error:
                raise self._stop(iteration + 1, f"a gradient is not finite ({error})") from error
            if "loss" in result[0]:
                self._check(iteration + 1, float(result[0]["loss"]))
            return result

        return watched

    def _check(self, iteration: int, loss: float) -> None:
        if math.isfinite(loss):
            if (limit := self._rule.limit(loss)) is not None:
                self._report_spike(iteration, loss, limit)
        elif not self._args.fp16:  # there the engine's loss scaling deals with it
            raise self._stop(iteration, f"the loss is {loss}")

    def _report_spike(self, iteration: int, loss: float, limit: float) -> None:
        """On the ranks that have a part in it: the mean is above the limit, so some microbatch is."""
        worst = [batch for batch in self._microbatches if batch.loss is not None and batch.mean() > limit]
        shards = parallel_state.get_tensor_model_parallel_rank() + parallel_state.get_context_parallel_rank()
        if worst and shards == 0:  # the others have the same samples
            say(
                f"warning: rank {self._args.rank}, iteration {iteration}: the loss {loss:.4f} is a spike, above "
                f"{limit:.4f} (--loss-spike-sigma {self._rule.sigma:g}); samples: {self._named(worst)}"
            )

    def _stop(self, iteration: int, what: str) -> NumbersError:
        culprits = [batch for batch in self._microbatches if batch.loss is not None and not math.isfinite(batch.mean())]
        return NumbersError(
            f"rank {self._args.rank}, iteration {iteration}: {what}; samples: "
            f"{self._named(culprits or self._microbatches)}; {_way_back(self._args, iteration)}"
        )

    def _named(self, microbatches: list[Microbatch]) -> str:
        samples = list(dict.fromkeys(index for batch in microbatches for index in batch.samples))
        named = [f"[{index}] {self._describe(self._dataset, index)}" for index in samples[:_MOST_NAMED]]
        more = f" and {len(samples) - _MOST_NAMED} more of the batch" if len(samples) > _MOST_NAMED else ""
        return "; ".join(named) + more


class _RejectedError(RuntimeError):
    """The engine's check of a gradient has failed; it raises a plain RuntimeError, as much else does."""


def watched_numbers(watch: LossWatch) -> list[Change]:
    """Changes that put ``watch`` and :func:`check_weights` into the engine's training loop."""
    return [
        Change("megatron.core.rerun_state_machine.RerunStateMachine.validate_result", __name__, _telling_rejections),
        Change("megatron.training.training.train_step", __name__, watch.train_step),
        Change("megatron.training.training.train", __name__, _checking_weights),
    ]


def _telling_rejections(validate_result: Callable) -> Callable:
    """The engine's check of one number, which raises :class:`_RejectedError` where the number is rejected."""
    signature = inspect.signature(validate_result)

    @functools.wraps(validate_result)
    def validate(*positional: Any, **named: Any) -> None:
        call = signature.bind(*positional, **named)
        rejects, verdicts = call.arguments["rejection_func"], []

        def noted(result: Any) -> Any:
            verdicts.append(rejects(result))
            return verdicts[-1]

        call.arguments["rejection_func"] = noted
        try:
            validate_result(*call.args, **call.kwargs)
        except RuntimeError as error:
            if not any(verdicts):  # an error of the check, such as one of the device
                raise
            raise _RejectedError(str(error)) from error

    return validate


def _checking_weights(train: Callable) -> Callable:
    @functools.wraps(train)
    def checked(forward_step_func: Callable, model: list[torch.nn.Module], *rest: Any, **named: Any) -> Any:
        check_weights(get_args(), unwrap_model(model))
        return train(forward_step_func, model, *rest, **named)

    return checked


def check_weights(args: argparse.Namespace, chunks: list[torch.nn.Module]) -> None:
    """Look through this rank's weights, the student's and the teacher's, before the first step.

    Args:
        args: the engine's arguments.
        chunks: :class:`StudentTeacherModel`, without the engine's wrappers.

    Raises:
        CheckpointError: a weight is NaN or Inf.
    """
    origin = f"{args.load}, iteration {args.iteration}" if args.iteration else "the model that training starts from"
    for chunk in chunks:
        frozen = chunk.teacher if chunk.adapters is None else chunk.module
        for whose, model in (("trained", chunk.trained), ("frozen", frozen)):
            for name, weight in model.named_parameters() if model is not None else ():
                if not bool(weight.detach().isfinite().all()):
                    raise CheckpointError(
                        f"rank {args.rank}: {name} of the {whose} model holds NaN or Inf; it is from {origin}: "
                        "give a model without them, or an earlier iteration (--ckpt-step)"
                    )


def _way_back(args: argparse.Namespace, iteration: int) -> str:
    choice = choose_checkpoint(Path(args.save)) if args.save else None
    start = f"the last complete checkpoint is {choice.folder}" if choice else "there is no checkpoint to return to"
    return f"{start}: start the same command again, and add --iterations-to-skip {iteration} if it happens again"


def _noting(data_iterator: Iterator, samples: list[int]) -> Iterator:
    """The next of ``data_iterator``, its samples' indices noted."""
    item = next(data_iterator)
    samples.extend(int(index) for index in item["sample_index"])
    yield item
