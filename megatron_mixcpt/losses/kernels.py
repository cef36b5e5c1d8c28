"""The passes over the logits themselves: one that reads them forward, one that writes the gradient backward.

Everything that costs time or memory is here, on ``[tokens, columns]`` tensors of one rank; the rest of the losses works
on a few numbers per token. Each pass is one plain function of tensors. ``compiled.run`` compiles it for the tensors'
device, C++ on a CPU and Triton on a GPU from this one source; without a compiler it runs uncompiled, in chunks of rows.

The forward pass takes a row in blocks of columns that stay in the first-level cache between finding their maximum and
adding up their exponentials, so that logits are read from memory once; a block's sums are merged as the ranks' are.
Sums of sums also lose less to rounding: a running float32 sum over 150,000 columns stops noticing the small ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.divergence import (
    GradientRows,
    GradientWeights,
    Sums,
    TokenStatistics,
    gradient_of_rows,
    merge,
    sums_of,
)
from megatron_mixcpt.losses.vocab_parallel import merge_exponentials
from megatron_mixcpt.objective import Divergence

# Columns in a block: 4 KiB of each model's logits as float32.
BLOCK = 1024


def exponential_statistics(logits: Tensor, num_columns: int) -> tuple[Tensor, Tensor]:
    """Per row, of the first ``num_columns`` columns: maximum and sum of exp(logit - maximum), float32 ``[tokens]``."""
    return compiled.run(_exponential_statistics, (logits,), num_columns)


def write_cross_entropy_gradient(
    gradient: Tensor, logits: Tensor, maximum: Tensor, log_sum: Tensor, weight: Tensor, num_columns: int
) -> None:
    """Write weight * softmax(logits) into the first ``num_columns`` columns of ``gradient``, which may be ``logits``.

    ``maximum``, ``log_sum`` (of the logits less their maximum) and ``weight`` are float32 ``[tokens]``. A row of weight
    0 gets 0, even if its logits are not finite.
    """
    coefficients = (part.unsqueeze(1) for part in (maximum, log_sum, weight))
    compiled.run(_write_cross_entropy_gradient, (gradient, logits, *coefficients), num_columns)


def divergence_statistics(
    student: Tensor, teacher: Tensor, num_columns: int, divergence: Divergence
) -> tuple[Sums, Tensor]:
    """The sums over the first ``num_columns`` columns of the logits ``[tokens, columns]``, each ``[tokens]``.

    Also returns the column of the teacher's first largest logit, int64 ``[tokens]``.
    """
    *sums, top = compiled.run(_divergence_reader(divergence), (student, teacher), num_columns)
    return Sums(*sums), top


def write_gradient(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    token: TokenStatistics,
    weights: GradientWeights,
    num_columns: int,
    divergence: Divergence,
) -> None:
    """Write ``gradient_of_rows`` into the first ``num_columns`` of ``gradient``, which may be ``student`` itself."""
    rows = (gradient, student, teacher, *GradientRows.of(token, weights))
    compiled.run(_gradient_writer(divergence), rows, num_columns)


@cache
def _divergence_reader(divergence: Divergence) -> Callable[..., tuple[Any, ...]]:
    """The forward pass for one divergence: the fields of ``Sums``, and the column of the teacher's largest logit."""

    def read(num_columns: int, student: Tensor, teacher: Tensor) -> tuple[Any, ...]:
        pairs = zip(_blocks(student, num_columns), _blocks(teacher, num_columns), strict=True)
        sums = [sums_of(s.float(), t.float(), divergence) for s, t in pairs]
        blocks = Sums(*(None if parts[0] is None else _join(parts) for parts in zip(*sums, strict=True)))
        top = _first_largest(teacher, blocks.teacher_max.argmax(0), num_columns)
        return *merge(blocks, divergence), top

    return read


@cache
def _gradient_writer(divergence: Divergence) -> Callable[..., None]:
    """The backward pass for one divergence."""

    def write(num_columns: int, gradient: Tensor, student: Tensor, teacher: Tensor, *rows: Tensor) -> None:
        s, t = student[:, :num_columns].float(), teacher[:, :num_columns].float()
        gradient[:, :num_columns] = gradient_of_rows(s, t, GradientRows(*rows), divergence)

    return write


def _exponential_statistics(num_columns: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    blocks = [_block_exponentials(block.float()) for block in _blocks(logits, num_columns)]
    maxima, sums = (_join(parts) for parts in zip(*blocks, strict=True))
    return merge_exponentials(maxima, sums)[:2]


def _block_exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    maximum = logits.amax(-1)
    return maximum, (logits - maximum.unsqueeze(-1)).exp().sum(-1)


def _write_cross_entropy_gradient(
    num_columns: int, gradient: Tensor, logits: Tensor, maximum: Tensor, log_sum: Tensor, weight: Tensor
) -> None:
    probability = (logits[:, :num_columns].float() - maximum - log_sum).exp()
    gradient[:, :num_columns] = torch.where(weight == 0, 0.0, probability * weight)


def _blocks(logits: Tensor, num_columns: int) -> list[Tensor]:
    """The first ``num_columns`` columns as ``[tokens, blocks, BLOCK]``, and the rest as ``[tokens, 1, rest]``."""
    whole = num_columns // BLOCK * BLOCK
    blocks = [logits[:, :whole].unflatten(1, (-1, BLOCK))] if whole else []
    return blocks + ([logits[:, None, whole:num_columns]] if whole < num_columns else [])


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    """A statistic of all blocks, ``[blocks, tokens]``, from parts ``[tokens, blocks]``."""
    return torch.cat(parts, 1).T


def _first_largest(logits: Tensor, block: Tensor, num_columns: int) -> Tensor:
    """The column of the first largest logit in the given block of each row, ``[tokens]``."""
    columns = block.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=logits.device)
    # The last block may be shorter: its last column, repeated, is never the first largest by its repetitions.
    columns = columns.clamp(max=num_columns - 1)
    return block * BLOCK + logits.gather(1, columns).argmax(1)
