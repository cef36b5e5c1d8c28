"""What a training shows on the terminal: where it runs, its plan, its phases, a line for each interval, evaluations.

Everything else that the engine and other libraries print is in the rank logs (``rank_logs.py``). The first rank shows
what precedes training and the last one, which has the losses, everything after that: one rank keeps lines in order.
"""

import argparse
import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from megatron.training import get_args
from megatron.training.utils import is_last_rank
from torch import Tensor

from megatron_mixcpt.config import RunConfig
from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES
from megatron_mixcpt.parallel_sizes import ParallelSizes
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.interval_line import Interval
from megatron_mixcpt.training.engine.patches import Change
from megatron_mixcpt.training.engine.rank_logs import FOLDER, keep_rank_log, rank_log
from megatron_mixcpt.training.router_load import RouterLoad


def quiet_terminal(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a training's ``main``: what it prints is held back until :func:`show_start` says where it goes."""

    @functools.wraps(main)
    def wrapped(*positional: Any, **named: Any) -> None:
        with rank_log():
            main(*positional, **named)

    return wrapped


def show_start(args: argparse.Namespace, config: RunConfig, plan: str) -> None:
    """Open this rank's log, and show where the training runs and what it is about to do.

    Args:
        args: the engine's arguments.
        config: what all trainings share of our settings.
        plan: the run's summary; a dry run shows nothing else.
    """
    show_where(args, config)
    show_plan(args, config, plan)


def show_where(args: argparse.Namespace, config: RunConfig) -> None:
    """Open this rank's log, and show where the training runs."""
    keep_rank_log(None if config.dry_run else args.save, args.rank, verbose=config.verbose and not config.dry_run)
    if args.rank == 0 and not config.dry_run:
        say(_where(args))


def show_plan(args: argparse.Namespace, config: RunConfig, plan: str) -> None:
    """Show what the training is about to do; a dry run ends with it."""
    if args.rank == 0:
        say(f"\n{plan}\n")


def describe_layout(sizes: ParallelSizes, args: argparse.Namespace) -> str:
    """How the ranks are divided, in which precision, and what the layers are made of, for a run's summary."""
    layers = "Transformer Engine's layers" if args.transformer_impl == "transformer_engine" else "PyTorch's layers"
    precision = str(args.params_dtype).removeprefix("torch.")
    return f"{sizes.described} = {args.world_size} rank{'s' * (args.world_size > 1)}, {precision}, {layers}"


def _where(args: argparse.Namespace) -> str:
    sizes = [
        ("TP", args.tensor_model_parallel_size),
        ("PP", args.pipeline_model_parallel_size),
        ("CP", args.context_parallel_size),
        ("EP", args.expert_model_parallel_size),
        ("DP", args.data_parallel_size),
    ]
    layout = " x ".join(f"{name} {size}" for name, size in sizes if size > 1 or name in ("TP", "PP", "DP"))
    device = torch.cuda.get_device_properties(torch.cuda.current_device()).name
    log = f"{Path(args.save) / FOLDER}" if args.save else "nowhere (no --save)"
    ranks = f"{args.world_size} rank{'s' if args.world_size > 1 else ''}"
    return (
        f"{ranks} on {device}, {layout}; torch {torch.__version__}, megatron-core {version('megatron-core')}; "
        f"full output: {log}"
    )


@contextlib.contextmanager
def phase(start: str, end: str) -> Iterator[None]:
    """Show on the first rank that something begins, and when it has ended how long it took."""
    first, began_s = get_args().rank == 0, time.monotonic()
    if first:
        say(f"{start} ...")
    yield
    if first:
        say(f"{end}: {time.monotonic() - began_s:.1f} s")


def shown_training(
    args: argparse.Namespace, tokens_of: Callable[[int], int], *, shows_evaluations: bool
) -> list[Change]:
    """Changes to the engine for which it shows its phases, a line for each interval, evaluations and checkpoints.

    Args:
        args: the engine's arguments.
        tokens_of: from an iteration, counted from 1, to the tokens of its batch.
        shows_evaluations: show the figures of each evaluation as a table; False where something else shows them.
    """
    interval, table = Interval(), EvaluationTable()
    load = RouterLoad(args.num_layers, args.num_experts) if args.num_experts else None
    changes: dict[str, Callable[[Any], Any]] = {
        "megatron.training.training.setup_model_and_optimizer": lambda function: _as_phase(
            function, "loading weights", "weights loaded"
        ),
        "megatron.training.training.build_train_valid_test_data_iterators": lambda function: _as_phase(
            function, "building datasets", "datasets built"
        ),
        "megatron.training.training.train": lambda function: _starting(function, interval, load),
        "megatron.training.training.training_log": lambda function: _with_line(function, interval, tokens_of, load),
        "megatron.training.training.save_checkpoint": lambda function: _showing_saves(function, interval),
        "megatron.training.checkpointing.schedule_async_save": _showing_ends_of_saves,
        "megatron.training.training.evaluate": table.collecting,
        "megatron.training.training.evaluate_and_print_results": lambda function: table.showing(
            function, interval, shown=shows_evaluations
        ),
    }
    return [Change(name, __name__, make) for name, make in changes.items()]


def _as_phase(function: Callable, start: str, end: str) -> Callable:
    @functools.wraps(function)
    def shown(*positional: Any, **named: Any) -> Any:
        with phase(start, end):
            return function(*positional, **named)

    return shown


def _starting(train: Callable, interval: Interval, load: RouterLoad | None) -> Callable:
    """The engine's training loop, whose start is shown, and whose routers are counted from then on."""
    signature = inspect.signature(train)

    @functools.wraps(train)
    def starting(*positional: Any, **named: Any) -> Any:
        if load is not None:
            load.watch(signature.bind(*positional, **named).arguments["model"])
        if is_last_rank():
            say("first step ...")
        interval.start()
        return train(*positional, **named)

    return starting


def _with_line(
    training_log: Callable, interval: Interval, tokens_of: Callable[[int], int], load: RouterLoad | None
) -> Callable:
    """The engine's ``training_log``, whose line goes to the log; the last rank has the losses and shows ours.

    How evenly the routers of a mixture of experts spread the tokens goes where the figures of the loss go.
    """
    signature = inspect.signature(training_log)

    @functools.wraps(training_log)
    def logged(*positional: Any, **named: Any) -> Any:
        call = signature.bind(*positional, **named)
        call.apply_defaults()
        of = call.arguments
        if load is not None:
            _add_load(of["loss_dict"], load.take())
        result = training_log(*positional, **named)
        if is_last_rank():
            figures = of["loss_dict"] | AUXILIARY_LOSSES.latest
            interval.add(figures, num_tokens=tokens_of(of["iteration"]), skipped=bool(of["skipped_iter"]))
            if of["is_first_iteration"]:
                say(f"first step done: {interval.seconds_since_start():.1f} s")
            if of["is_first_iteration"] or of["iteration"] % get_args().log_interval == 0:
                say(interval.take(of["iteration"], get_args().train_iters))
        return result

    return logged


def _add_load(figures: dict[str, Tensor], load: dict[str, Tensor]) -> None:
    """Only ranks of the last stage have figures of the loss, in a dictionary that the engine makes for each step."""
    if figures:
        figures.update(load)


def _showing_saves(save_checkpoint: Callable, interval: Interval) -> Callable:
    @functools.wraps(save_checkpoint)
    def saved(iteration: int, *rest: Any, **options: Any) -> Any:
        args, began_s = get_args(), time.monotonic()
        if is_last_rank():
            say(f"saving checkpoint at iteration {iteration} ...")
        result = save_checkpoint(iteration, *rest, **options)
        seconds = time.monotonic() - began_s
        interval.leave_out(seconds)
        if is_last_rank() and not args.async_save:
            say(f"checkpoint saved in {args.save}: {seconds:.1f} s")
        return result

    return saved


def _showing_ends_of_saves(schedule: Callable) -> Callable:
    """The engine's start of an asynchronous save, whose end is shown."""

    @functools.wraps(schedule)
    def scheduled(request: Any) -> None:
        args, began_s = get_args(), time.monotonic()
        if is_last_rank():
            request.add_finalize_fn(
                lambda: say(f"checkpoint saved in {args.save}: {time.monotonic() - began_s:.1f} s, in the background")
            )
        schedule(request)

    return scheduled


class EvaluationTable:
    """The figures of an evaluation: a line for each validation set, a column for each figure."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def collecting(self, evaluate: Callable) -> Callable:
        """The engine's ``evaluate`` of one set, whose figures are noted."""

        @functools.wraps(evaluate)
        def collected(*positional: Any, **named: Any) -> Any:
            result = evaluate(*positional, **named)
            figures: dict[str, Tensor] = result[0] or {}
            self._rows.append({key: float(value) for key, value in figures.items()})
            return result

        return collected

    def showing(self, evaluate_and_print_results: Callable, interval: Interval, *, shown: bool) -> Callable:
        """The engine's evaluation of all sets, after which the table is shown on the last rank."""
        signature = inspect.signature(evaluate_and_print_results)

        @functools.wraps(evaluate_and_print_results)
        def evaluated(*positional: Any, **named: Any) -> Any:
            began_s = time.monotonic()
            self._rows.clear()
            result = evaluate_and_print_results(*positional, **named)
            interval.leave_out(time.monotonic() - began_s)
            if shown and is_last_rank() and any(self._rows):
                args = get_args()
                names = args.validation_set_names or [f"set {number}" for number in range(len(self._rows))]
                say(self.text(signature.bind(*positional, **named).arguments["iteration"], names))
            return result

        return evaluated

    def text(self, iteration: int, names: list[str]) -> str:
        """The table of an evaluation after ``iteration`` iterations; a column is as wide as its name."""
        widths = {key: max(len(key) + 2, 12) for key in self._rows[0]}
        lines = [f"validation after {iteration} iterations"]
        lines.append(f"{'validation set':<24}" + "".join(f"{key:>{width}}" for key, width in widths.items()))
        for name, row in zip(names, self._rows, strict=False):
            lines.append(f"{name:<24}" + "".join(f"{row[key]:>{width}.6g}" for key, width in widths.items()))
        return "\n".join(lines)
