"""Runs a function over rows of tensors compiled, or uncompiled where it cannot be compiled or need not be.

Of a tensor's sizes only the number of rows, which are tokens, stays open in what is compiled. The columns are part of
it: a GPU then loads 16 bytes at a time and divides no indices, at the price of a compilation, which takes seconds, for
each size of a vocabulary (torch keeps the result on disk). Small inputs are not compiled. Without a compiler (``g++``
on a CPU), or with torch's switch ``TORCH_COMPILE_DISABLE=1``, a function runs uncompiled, some rows at a time, which
bounds its temporaries. Both ways agree to rounding.
"""

import os
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

# Elements of the logits below which compiling a pass over them does not pay, and tokens likewise.
COMPILE_ELEMENTS = 2**22
COMPILE_TOKENS = 128


class _Device(NamedTuple):
    """What is worth doing on a kind of device: the one place where the losses ask for it."""

    chunk_elements: int
    """Elements of a float32 temporary when running uncompiled."""
    compiles_arithmetic: bool
    """Whether compiling pays for arithmetic on a few numbers per token."""


# Temporaries of 1 MiB stay in the processor's cache, and a small operation costs a microsecond.
_CPU = _Device(chunk_elements=2**18, compiles_arithmetic=False)
# Temporaries of 256 MiB, for every operation has to be started, which takes the host longer than it runs.
_ACCELERATOR = _Device(chunk_elements=2**26, compiles_arithmetic=True)


def _device(tensor: Tensor) -> _Device:
    return _CPU if tensor.device.type == "cpu" else _ACCELERATOR


def run[R: tuple | None](function: Callable[..., R], rows: tuple[Tensor, ...]) -> R:
    """``function(*rows)``, a pass over the logits: for a function that treats every row of its tensors separately.

    It returns a tuple of tensors with an entry per row, or None in their place, or writes into one of its arguments and
    returns None. The size of the first of ``rows`` decides whether to compile.
    """
    return _compiled_or(run_in_chunks, function, rows, pays=rows[0].numel() >= COMPILE_ELEMENTS)


def run_on_tokens[R: tuple | None](function: Callable[..., R], rows: tuple[Tensor, ...]) -> R:
    """``function(*rows)``, arithmetic on a few numbers per token: compiled on an accelerator, where it is one kernel.

    It may read single columns of a large tensor, or write them, and add up over the tokens. The first dimension of all
    tensors is the tokens.
    """
    pays = _device(rows[0]).compiles_arithmetic and len(rows[0]) >= COMPILE_TOKENS
    return _compiled_or(lambda function, rows: function(*rows), function, rows, pays=pays)


def run_in_chunks[R: tuple | None](function: Callable[..., R], rows: tuple[Tensor, ...]) -> R:
    """What :func:`run` does, uncompiled: ``function`` on some rows at a time, its results joined."""
    step = max(1, _device(rows[0]).chunk_elements // rows[0].size(1))
    results = [function(*(part[start : start + step] for part in rows)) for start in range(0, len(rows[0]), step)]
    if results[0] is None:
        return results[0]
    columns = zip(*results, strict=True)
    return cast(R, tuple(None if parts[0] is None else torch.cat(parts) for parts in columns))


def _compiled_or[R](
    uncompiled: Callable[[Callable[..., R], tuple[Tensor, ...]], R],
    function: Callable[..., R],
    rows: tuple[Tensor, ...],
    *,
    pays: bool,
) -> R:
    """``function(*rows)`` compiled where that pays and there is a compiler, else what ``uncompiled`` makes of them."""
    if pays and _can_compile(rows):
        try:
            return _call_compiled(function, rows)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            _give_up(error)
    return uncompiled(function, rows)


def _call_compiled[R](function: Callable[..., R], rows: tuple[Tensor, ...]) -> R:
    # New objects, for the mark stays on a tensor; one for each, so that a tensor given twice is seen to be the same.
    marked = {id(part): part.detach() for part in rows}
    for part in marked.values():
        torch._dynamo.mark_dynamic(part, 0)
    sizes = tuple((part.dtype, *part.shape[1:]) for part in rows)
    return _compiled(function, sizes)(*(marked[id(part)] for part in rows))


@cache
def _compiled[R](function: Callable[..., R], sizes: tuple) -> Callable[..., R]:
    """``function`` for tensors of these dtypes and sizes, any number of rows."""
    # Dynamo allows eight compilations of a code object: each size, and each closure of one function, has its own.
    assert isinstance(function, types.FunctionType)
    code, closure = function.__code__.replace(), function.__closure__
    own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    return torch.compile(own, dynamic=False, fullgraph=True)


_compiler_failed = False


def _can_compile(rows: tuple[Tensor, ...]) -> bool:
    """Whether there is a compiler, as far as is known; a single row would need a compilation of its own."""
    switched_off = torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    return len(rows[0]) > 1 and not (_compiler_failed or switched_off)


def _give_up(error: Exception) -> None:
    """Continue uncompiled for the rest of the process, with one warning."""
    global _compiler_failed
    _compiler_failed = True
    reason = str(error).strip().splitlines()[0]
    warnings.warn(f"the loss runs uncompiled, which is slower: torch.compile failed: {reason}", stacklevel=2)
