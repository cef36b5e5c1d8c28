"""Runs a function over rows of tensors compiled, or as it is where it cannot be compiled or need not be.

One compilation per function and dtype serves all shapes. It takes seconds (torch keeps the result on disk), so small
inputs are not compiled. Without a compiler (`g++` on a CPU), or with torch's own switch `TORCH_COMPILE_DISABLE=1`, the
function runs uncompiled, a few rows at a time, which keeps its temporaries in the processor's cache and out of the
memory budget. Both ways agree to rounding.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

# Elements below which compiling does not pay; elements of a float32 temporary when running uncompiled: 1 MiB.
COMPILE_ELEMENTS = 2**22
CHUNK_ELEMENTS = 2**18

Rows = tuple[Tensor, ...]
RowFunction = Callable[..., Rows | None]


def run(function: RowFunction, rows: Rows, num_columns: int) -> Rows | None:
    """`function(*rows, num_columns)`, for a function that treats every row of its tensors by itself.

    It returns tensors with an entry per row, or writes into one of its arguments and returns None. The first of `rows`
    decides by its size whether to compile.
    """
    if rows[0].numel() >= COMPILE_ELEMENTS and _can_compile():
        try:
            return _compiled(function)(*rows, num_columns)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            _give_up(error)
    return run_in_chunks(function, rows, num_columns)


def run_in_chunks(function: RowFunction, rows: Rows, num_columns: int) -> Rows | None:
    """What `run` does, uncompiled: `function` on a few rows at a time, its results joined."""
    step = max(1, CHUNK_ELEMENTS // num_columns)
    results = [
        function(*(part[start : start + step] for part in rows), num_columns) for start in range(0, len(rows[0]), step)
    ]
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True)) if results[0] is not None else None


@cache
def _compiled(function: RowFunction) -> RowFunction:
    return torch.compile(function, dynamic=True, fullgraph=True)


_compiler_failed = False


def _can_compile() -> bool:
    switched_off = torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    return not (_compiler_failed or switched_off)


def _give_up(error: Exception) -> None:
    """Go on uncompiled for the rest of the process, and say so once."""
    global _compiler_failed
    _compiler_failed = True
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"the loss runs uncompiled, which is slower: torch.compile failed: {reason}", stacklevel=2)
