"""Errors that are the user's to mend: one line that names the value, where it came from and the way out.

Everything else (a bug of ours) stays an ordinary exception with its traceback.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps


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


def exit_on_user_error(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap a tool's ``main`` so that a :class:`MixCPTError` ends it with one line on stderr and exit code 1.

    Under torchrun, ranks mostly meet the same error: the others leave the first rank of their machine time to speak
    for all of them, whereupon torchrun ends them.
    """

    @wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except MixCPTError as error:
            if int(os.environ.get("LOCAL_RANK", "0")) > 0:
                time.sleep(5.0)
                rank = f"rank {os.environ['RANK']}"
                error = error if str(error).startswith(rank) else MixCPTError(f"{rank}: {error}")
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(1)

    return wrapped
