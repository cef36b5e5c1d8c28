"""Runs ``autograd.Function`` by hand on fake tensors, whose backward autograd's engine cannot run without a driver."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch


class Context:
    """What a ``Function`` gets as ``ctx``."""

    saved_tensors: tuple[torch.Tensor, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep tensors for backward."""
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors: torch.Tensor) -> None:
        """Nothing to do: the caller says which gradients come in."""

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing to do."""


@contextmanager
def recorded(*functions: type[torch.autograd.Function]) -> Iterator[list[tuple[Any, Context]]]:
    """``apply`` of these functions runs their forward and notes ``(function, ctx)``, the latest last.

    ``function.backward(ctx, *gradients)`` is then an ordinary call.
    """
    calls: list[tuple[Any, Context]] = []

    def apply_of(function: Any) -> Any:
        def apply(*args: Any) -> Any:
            context = Context()
            with torch.no_grad():
                output = function.forward(context, *args)
            calls.append((function, context))
            return output

        return apply

    patches = [patch.object(function, "apply", apply_of(function)) for function in functions]
    for one in patches:
        one.start()
    try:
        yield calls
    finally:
        for one in patches:
            one.stop()
