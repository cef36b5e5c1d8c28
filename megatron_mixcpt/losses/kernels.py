"""The passes over the logits themselves: one that reads them forward, one that writes the gradient backward.

Everything that costs time or memory is here, on ``[tokens, columns]`` tensors of one rank; the rest of the losses works
on a few numbers per token. The tensors hold the output layer's products, which become logits as they are read
(``logit_scaling.py``). Each pass is one plain function of tensors, made for a rank's shard of the vocabulary.
``compiled.run`` compiles it for the tensors' device, C++ on a CPU and Triton on a GPU from this one source; without a
compiler it runs uncompiled, in chunks of rows.

The forward pass takes a row in blocks of columns that stay in the first-level cache between finding their maximum and
adding up their exponentials, so that logits are read from memory once; a block's sums are merged as the ranks' are.
Sums of sums also lose less to rounding: a running float32 sum over 150,000 columns stops noticing the small ones.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_mixcpt.losses import compiled
from megatron_mixcpt.losses.divergence import (
    GradientRows,
    Sums,
    gradient_of_rows,
    merge,
    sums_of,
)
from megatron_mixcpt.losses.logit_scaling import LogitScaling, LogitScalings
from megatron_mixcpt.losses.vocab_parallel import VocabShard, logits_at, merge_exponentials, overwrite_at
from megatron_mixcpt.objective import Divergence

# Columns in a block: 4 KiB of each model's logits as float32.
BLOCK = 1024


class ExponentialStatistics(NamedTuple):
    """Of each token, float32 ``[tokens]``: maximum, sum of exp(logit - maximum), and the label's logit or 0."""

    maximum: Tensor
    sum: Tensor
    label_logit: Tensor


class DivergenceStatistics(NamedTuple):
    """Of each token, ``[tokens]``: the sums, the teacher's first largest logit, and single logits, 0 where not owned.

    ``top_column`` (int32) is the place of the largest logit among the rank's columns.
    """

    sums: Sums
    top_column: Tensor
    student_top: Tensor
    student_label: Tensor
    teacher_label: Tensor


def exponential_statistics(
    products: Tensor, labels: Tensor, shard: VocabShard, scaling: LogitScaling
) -> ExponentialStatistics:
    """The statistics of this rank's true columns, ``[tokens, columns]``."""
    return ExponentialStatistics(*compiled.run(_exponential_reader(shard, scaling), (products, labels)))


def write_cross_entropy_gradient(
    gradient: Tensor,
    products: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    weight: Tensor,
    shard: VocabShard,
    scaling: LogitScaling,
) -> None:
    """Write weight * softmax(logits), as a gradient of the products, into the true columns of ``gradient``.

    ``gradient`` may be ``products``.

    ``maximum``, ``log_sum`` (of the logits less their maximum) and ``weight`` are float32 ``[tokens]``. A row of weight
    0 gets 0, even if its logits are not finite.
    """
    coefficients = (part.unsqueeze(1) for part in (maximum, log_sum, weight))
    compiled.run(_cross_entropy_gradient_writer(shard.num_columns, scaling), (gradient, products, *coefficients))


def divergence_statistics(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    shard: VocabShard,
    divergence: Divergence,
    scalings: LogitScalings,
) -> DivergenceStatistics:
    """The statistics of this rank's true columns, ``[tokens, columns]``."""
    *sums, top, student_top, student_label, teacher_label = compiled.run(
        _divergence_reader(divergence, shard, scalings), (student, teacher, labels)
    )
    return DivergenceStatistics(Sums(*sums), top, student_top, student_label, teacher_label)


def write_gradient(
    gradient: Tensor,
    student: Tensor,
    teacher: Tensor,
    rows: GradientRows,
    num_columns: int,
    divergence: Divergence,
    scalings: LogitScalings,
) -> None:
    """Write ``gradient_of_rows`` into the first ``num_columns`` of ``gradient``, which may be ``student`` itself."""
    compiled.run(_gradient_writer(divergence, num_columns, scalings), (gradient, student, teacher, *rows))


def overwrite_columns(gradient: Tensor, shard: VocabShard, *entries: tuple[Tensor, Tensor, Tensor]) -> None:
    """For each of (index, value, where), in their order, what ``vocab_parallel.overwrite_at`` does."""
    compiled.run_on_tokens(_overwriter(shard), (gradient, *(part for entry in entries for part in entry)))


@cache
def _divergence_reader(
    divergence: Divergence, shard: VocabShard, scalings: LogitScalings
) -> Callable[..., tuple[Any, ...]]:
    """The forward pass for one divergence: the fields of ``Sums``, then those of ``DivergenceStatistics``."""

    def read(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Any, ...]:
        pairs = zip(_blocks(student, shard.num_columns), _blocks(teacher, shard.num_columns), strict=True)
        sums = [sums_of(scalings.student(s.float()), scalings.teacher(t.float()), divergence) for s, t in pairs]
        blocks = Sums(*(None if parts[0] is None else _join(parts) for parts in zip(*sums, strict=True)))
        top = _first_largest(teacher, blocks.teacher_max.argmax(0), shard.num_columns, scalings.teacher)
        student_top = scalings.student(student.gather(1, top.unsqueeze(1)).squeeze(1).float())
        products = logits_at(student, shard, labels), logits_at(teacher, shard, labels)
        at_label = (scaling(product) for scaling, product in zip(scalings, products, strict=True))
        return *merge(blocks, divergence), top.int(), student_top, *at_label

    return read


@cache
def _gradient_writer(divergence: Divergence, num_columns: int, scalings: LogitScalings) -> Callable[..., None]:
    """The backward pass for one divergence."""

    def write(gradient: Tensor, student: Tensor, teacher: Tensor, *rows: Tensor) -> None:
        s, t = student[:, :num_columns].float(), teacher[:, :num_columns].float()
        s, t = scalings.student(s), scalings.teacher(t)
        gradient[:, :num_columns] = gradient_of_rows(s, t, GradientRows(*rows), divergence, scalings.student)

    return write


@cache
def _overwriter(shard: VocabShard) -> Callable[..., None]:
    def overwrite(gradient: Tensor, *entries: Tensor) -> None:
        for start in range(0, len(entries), 3):
            overwrite_at(gradient, shard, *entries[start : start + 3])

    return overwrite


@cache
def _exponential_reader(shard: VocabShard, scaling: LogitScaling) -> Callable[..., tuple[Tensor, ...]]:
    def read(products: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        blocks = [_block_exponentials(scaling(block.float())) for block in _blocks(products, shard.num_columns)]
        maxima, sums = (_join(parts) for parts in zip(*blocks, strict=True))
        return *merge_exponentials(maxima, sums)[:2], scaling(logits_at(products, shard, labels))

    return read


def _block_exponentials(logits: Tensor) -> tuple[Tensor, Tensor]:
    maximum = logits.amax(-1)
    return maximum, (logits - maximum.unsqueeze(-1)).exp().sum(-1)


@cache
def _cross_entropy_gradient_writer(num_columns: int, scaling: LogitScaling) -> Callable[..., None]:
    def write(gradient: Tensor, products: Tensor, maximum: Tensor, log_sum: Tensor, weight: Tensor) -> None:
        logits = scaling(products[:, :num_columns].float())
        value = scaling.gradient_of_products((logits - maximum - log_sum).exp() * weight, logits)
        gradient[:, :num_columns] = torch.where(weight == 0, 0.0, value)

    return write


def _blocks(logits: Tensor, num_columns: int) -> list[Tensor]:
    """The first ``num_columns`` columns as ``[tokens, blocks, BLOCK]``, and the rest as ``[tokens, 1, rest]``."""
    whole = num_columns // BLOCK * BLOCK
    blocks = [logits[:, :whole].unflatten(1, (-1, BLOCK))] if whole else []
    return blocks + ([logits[:, None, whole:num_columns]] if whole < num_columns else [])


def _join(parts: tuple[Tensor, ...]) -> Tensor:
    """A statistic of all blocks, ``[blocks, tokens]``, from parts ``[tokens, blocks]``."""
    return torch.cat(parts, 1).T


def _first_largest(products: Tensor, block: Tensor, num_columns: int, scaling: LogitScaling) -> Tensor:
    """The column of the first largest logit in the given block of each row, ``[tokens]``."""
    columns = block.unsqueeze(1) * BLOCK + torch.arange(BLOCK, device=products.device)
    # The last block may be shorter: its last column, repeated, is never the first largest by its repetitions.
    columns = columns.clamp(max=num_columns - 1)
    return block * BLOCK + scaling(products.gather(1, columns).float()).argmax(1)
