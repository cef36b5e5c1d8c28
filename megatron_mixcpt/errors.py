"""Errors that the user can correct: one line that names the value, where it came from and the way out.

Everything else (a bug of ours) stays an ordinary exception with its traceback.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps

from megatron_mixcpt.torchrun_report import another_rank_has_spoken, explained, speaks_for_the_machine


class MixCPTError(Exception):
    """Base of the errors shown to the user without a traceback: one line, whatever the names in it hold."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())


class ConfigError(MixCPTError):
    """A flag, environment variable or combination of them that cannot be run."""


class DataError(MixCPTError):
    """A record, data file or dataset folder that cannot be used."""


class CheckpointError(MixCPTError):
    """A model folder or checkpoint that is missing, damaged, or of another model."""


class NumbersError(MixCPTError):
    """A loss or gradient that is NaN or Inf."""


def nearest(number: int, works: Callable[[int], bool], *, most: int) -> str:
    """The nearest smaller and larger numbers that work, for the way out of an error: ``4 or 8``.

    Args:
        number: one that does not work.
        works: whether a number does.
        most: the largest that is tried.
    """
    below = next((tried for tried in range(min(number - 1, most), 0, -1) if works(tried)), None)
    above = next((tried for tried in range(number + 1, most + 1) if works(tried)), None)
    return " or ".join(str(tried) for tried in (below, above) if tried is not None) or "other numbers"


def nearest_divisors(number: int, of: int) -> str:
    """The nearest numbers that divide ``of``, for the way out of an error."""
    return nearest(number, lambda tried: of % tried == 0, most=of)


def nearest_multiples(number: int, of: int) -> str:
    """The nearest multiples of ``of``, for the way out of an error."""
    return nearest(number, lambda tried: tried % of == 0, most=number + of)


def exit_on_user_error[**P, R](main: Callable[P, R]) -> Callable[P, R]:
    """Wrap a tool's ``main`` so that a :class:`MixCPTError` ends it with one line on stderr and exit code 1.

    Under torchrun, ranks mostly meet the same error: see :func:`report_user_error`. A program that starts processes,
    or whose ranks wait for one another, takes ``rank_exit.exit_as_rank`` instead.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except MixCPTError as error:
            report_user_error(error)
            sys.exit(1)
        except Exception:
            if not another_rank_has_spoken():
                raise
            explained()
            sys.exit(1)

    return wrapped


def report_user_error(error: MixCPTError) -> None:
    """Print the line that tells the user what to correct, on one rank of each machine, the first one if it can."""
    line = f"error: {with_rank(error)}"
    wait_for_the_first_rank()
    if speaks_for_the_machine():
        print(line, file=sys.stderr, flush=True)
        explained(line)
    else:
        explained()


def with_rank(message: object) -> str:
    """The message, which names the rank where that is not the first of its machine."""
    rank = f"rank {os.environ.get('RANK')}"
    return str(message) if _local_rank() == 0 or str(message).startswith(rank) else f"{rank}: {message}"


def wait_for_the_first_rank() -> None:
    """Leave the first rank of this machine time to meet the same error."""
    deadline = time.monotonic() + 5.0
    while _local_rank() > 0 and not another_rank_has_spoken() and time.monotonic() < deadline:
        time.sleep(0.05)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
