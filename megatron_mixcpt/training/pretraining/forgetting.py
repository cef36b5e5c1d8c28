"""The forgetting meter: on each validation set the student's next-token loss and, as a constant line, the teacher's.

Below the line the student has learned, above it has forgotten. The teacher's loss is measured in the first evaluation
of a run and repeated in each one. A run without a teacher (``none``, ``l2``, alpha 1) is held against the model that it
started from, whose loss is the student's before the first step; a file beside the checkpoints keeps it, for a run that
is resumed.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.training.utils import is_last_rank
from torch import Tensor

from megatron_mixcpt.jobs.whole_outputs import write_whole
from megatron_mixcpt.log_names import STUDENT_LOSS, TEACHER_LOSS
from megatron_mixcpt.terminal import say
from megatron_mixcpt.training.engine.patches import Change

RECORD_NAME = "validation_before_training.json"


class ForgettingMeter:
    """Follows the engine from set to set of an evaluation.

    Args:
        identities: name of each validation set, in the engine's order, to a text that identifies its samples.
        runs_teacher: whether the teacher runs in evaluations, so that it can be measured.
        folder: where a run without a teacher keeps the losses from before its first step; None: nowhere.
    """

    def __init__(self, identities: Mapping[str, str], *, runs_teacher: bool, folder: Path | None) -> None:
        self._names = list(identities)
        self._identities = identities
        self._runs_teacher = runs_teacher
        self._record = folder / RECORD_NAME if folder and not runs_teacher else None
        self._teacher: dict[str, float] = self._recorded()
        self._student: dict[str, float] = {}
        self._iteration = 0
        self._index = 0

    @property
    def measures_teacher(self) -> bool:
        """Whether the teacher's loss on the set that is being evaluated is still unknown, and can be measured."""
        return self._runs_teacher and self._names[self._index] not in self._teacher

    def begin(self, iteration: int) -> None:
        """Start an evaluation of all sets, after ``iteration`` steps."""
        self._iteration, self._index = iteration, 0
        self._student.clear()

    def take(self, losses: dict[str, Tensor]) -> None:
        """Record the losses of the next set, and **add** the teacher's constant to them.

        Args:
            losses: key -> scalar, as the engine is about to report them; empty on ranks before the last stage.
        """
        name = self._names[self._index]
        self._index += 1
        if not losses:
            return
        self._student[name] = losses[STUDENT_LOSS].item()
        if TEACHER_LOSS in losses:
            self._teacher[name] = losses[TEACHER_LOSS].item()
        elif self._iteration == 0 and not self._runs_teacher:
            self._teacher[name] = self._student[name]
        if name in self._teacher:
            losses[TEACHER_LOSS] = torch.full_like(losses[STUDENT_LOSS], self._teacher[name])

    def end(self) -> str:
        """End an evaluation and return its losses as a table; complete on the last rank only."""
        if self._record and self._iteration == 0:
            kept = {name: [self._identities[name], loss] for name, loss in self._teacher.items()}
            write_whole(self._record, json.dumps(kept, indent=2))
        title = f"next-token loss after {self._iteration} iterations, in nats per token; change: student - teacher"
        lines = [title, f"{'validation set':<24}{'student':>10}{'teacher':>10}{'change':>10}"]
        for name, student in self._student.items():
            teacher = self._teacher.get(name)
            compared = "not known" if teacher is None else f"{teacher:>10.4f}{student - teacher:>+10.4f}"
            lines.append(f"{name:<24}{student:>10.4f}{compared:>10}")
        return "\n".join(lines)

    def _recorded(self) -> dict[str, float]:
        """The recorded losses of the sets whose samples are still the same."""
        if self._record is None or not self._record.is_file():
            return {}
        kept = json.loads(self._record.read_text(encoding="utf-8"))
        return {name: kept[name][1] for name, same in self._identities.items() if kept.get(name, [None])[0] == same}


def shown_forgetting(meter: ForgettingMeter) -> list[Change]:
    """Changes to the engine: evaluations tell ``meter`` what they find, report its constants, and print its table."""
    return [
        Change("megatron.training.training.evaluate", __name__, functools.partial(_taking_losses, meter)),
        Change("megatron.training.training.evaluate_and_print_results", __name__, functools.partial(_printing, meter)),
    ]


def _taking_losses(meter: ForgettingMeter, evaluate: Callable) -> Callable:
    @functools.wraps(evaluate)
    def evaluate_one(*positional: Any, **named: Any) -> tuple[dict[str, Tensor] | None, Any, bool]:
        losses, non_loss_data, out_of_time = evaluate(*positional, **named)
        if not out_of_time:
            meter.take(losses)
        return losses, non_loss_data, out_of_time

    return evaluate_one


def _printing(meter: ForgettingMeter, evaluate_and_print_results: Callable) -> Callable:
    @functools.wraps(evaluate_and_print_results)
    def evaluate_all(*positional: Any, **named: Any) -> None:
        call = inspect.signature(evaluate_and_print_results).bind(*positional, **named)
        meter.begin(call.arguments["iteration"])
        evaluate_and_print_results(*positional, **named)
        if is_last_rank():
            say(meter.end())

    return evaluate_all
