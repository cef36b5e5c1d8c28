"""What one process of a job works out for all of them, however long it takes; if it fails, all fail with its error."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from megatron_mixcpt.errors import MixCPTError

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
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        return _result(outcome[0])

    def from_all[T](self, make: Callable[[], T]) -> list[T]:
        """What ``make`` returns on each rank, by rank.

        Raises the :class:`MixCPTError` of the first rank where ``make`` raises one, on every rank.
        """
        if self._group is None:
            return [make()]
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, _outcome(make), group=self._group)
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
