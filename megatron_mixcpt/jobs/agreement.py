"""What one process of a job works out for all of them, however long it takes; if it fails, all fail with its error."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_mixcpt.errors import DataError, MixCPTError

# The group's waits end when the process that is waited for ends; no job should run into this limit.
_PATIENCE = timedelta(days=7)


class Agreement:
    """Ranks that wait for one another on the host, without the default group's time limit."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def from_first[T](self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first rank, which alone calls it; any object that can be pickled.

        Raises the :class:`MixCPTError` that ``make`` raises there, on every rank.
        """
        if self._group is None:
            return make()
        outcome = [_outcome(make) if dist.get_rank() == 0 else None]
        with _explained_ends():
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        return _result(outcome[0])

    def from_all[T](self, make: Callable[[], T]) -> list[T]:
        """What ``make`` returns on each rank, by rank.

        Raises the :class:`MixCPTError` of the first rank where ``make`` raises one, on every rank.
        """
        if self._group is None:
            return [make()]
        outcomes: list[Any] = [None] * dist.get_world_size()
        outcome = _outcome(make)
        with _explained_ends():
            dist.all_gather_object(outcomes, outcome, group=self._group)
        return [_result(outcome) for outcome in outcomes]


@contextlib.contextmanager
def agreement() -> Iterator[Agreement]:
    """An :class:`Agreement` of the ranks of the default group; of this process alone where there is none."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield Agreement(None)
        return
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield Agreement(group)
    dist.destroy_process_group(group)


@contextlib.contextmanager
def _explained_ends() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, when a connection is closed
        raise DataError(
            "another rank has ended while this one waited for it; its log says why, unless it was killed, perhaps for "
            "want of memory"
        ) from error


def _outcome(make: Callable[[], Any]) -> tuple[Any, MixCPTError | None]:
    try:
        return make(), None
    except MixCPTError as error:
        return None, error


def _result(outcome: Any) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
