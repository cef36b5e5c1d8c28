"""Runs a function over rows of tensors compiled, or uncompiled where it cannot be compiled or need not be.

One compilation per function and dtype serves all shapes. It takes seconds (torch keeps the result on disk), so small
inputs are not compiled. Without a compiler (``g++`` on a CPU), or with torch's switch ``TORCH_COMPILE_DISABLE=1``, the
function runs uncompiled, a few rows at a time, which keeps its temporaries in the processor's cache and out of the
memory budget. Both ways agree to rounding.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor

# Elements below which compiling does not pay; elements of a float32 temporary when running uncompiled: 1 MiB.
COMPILE_ELEMENTS = 2**22
CHUNK_ELEMENTS = 2**18


def run[R: tuple | None](function: Callable[..., R], rows: tuple[Tensor, ...], num_columns: int) -> R:
    """``function(num_columns, *rows)``, for a function that treats every row of its tensors separately.

    It returns a tuple of tensors with an entry per row, or None in their place, or writes into one of its arguments and
    returns None. The size of the first of ``rows`` decides whether to compile.
    """
    if rows[0].numel() >= COMPILE_ELEMENTS and _can_compile():
        try:
            return _compiled(function)(num_columns, *rows)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            _give_up(error)
    return run_in_chunks(function, rows, num_columns)


def run_in_chunks[R: tuple | None](function: Callable[..., R], rows: tuple[Tensor, ...], num_columns: int) -> R:
    """What :func:`run` does, uncompiled: ``function`` on a few rows at a time, its results joined."""
    step = max(1, CHUNK_ELEMENTS // num_columns)
    results = [
        function(num_columns, *(part[start : start + step] for part in rows)) for start in range(0, len(rows[0]), step)
    ]
    if results[0] is None:
        return results[0]
    columns = zip(*results, strict=True)
    return cast(R, tuple(None if parts[0] is None else torch.cat(parts) for parts in columns))


@cache
def _compiled[R](function: Callable[..., R]) -> Callable[..., R]:
    return torch.compile(function, dynamic=True, fullgraph=True)


_compiler_failed = False


def _can_compile() -> bool:
    switched_off = torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    return not (_compiler_failed or switched_off)


def _give_up(error: Exception) -> None:
    """Continue uncompiled for the rest of the process, with one warning."""
    global _compiler_failed
    _compiler_failed = True
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"the loss runs uncompiled, which is slower: torch.compile failed: {reason}", stacklevel=2)
