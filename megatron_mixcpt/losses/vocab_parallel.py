"""What every loss over a sharded vocabulary shares: which columns a rank holds, and one all-gather of what they say.

Each rank holds equally many consecutive columns of the logits, rank 0 the first. Columns at and beyond ``vocab_size``
pad the vocabulary so that it divides by the tensor parallel size; they are left out everywhere (a padded column has
logit 0 and would take probability). A rank may hold nothing but padding.

Logits and gradients are ``[tokens, columns]`` here, indices, masks and values ``[tokens]``.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Stands for the maximum over no columns. Finite, so that the difference of two of them is 0 and not nan.
LOWEST = torch.finfo(torch.float32).min


class VocabShard(NamedTuple):
    """One rank's columns without padding: ``[first, first + num_columns)`` of a vocabulary of ``vocab_size``."""

    first: int
    num_columns: int
    vocab_size: int

    def owns(self, index: Tensor) -> Tensor:
        """Whether this rank holds the true column ``index``; bool."""
        return (index >= self.first) & (index < self.first + self.num_columns)

    def position(self, index: Tensor) -> Tensor:
        """The place of ``index`` among this rank's columns, int64; 0 where this rank does not own it."""
        return torch.where(self.owns(index), index - self.first, 0).long()


def is_true(index: Tensor, vocab_size: int) -> Tensor:
    """Whether ``index`` is a true column of the vocabulary, on whichever rank; bool."""
    return (index >= 0) & (index < vocab_size)


def vocab_shard(num_columns: int, vocab_size: int | None, tp_group: dist.ProcessGroup | None) -> VocabShard:
    """This rank's shard in ``tp_group`` (None: one rank), of logits of ``num_columns`` columns, padding included.

    ``vocab_size`` is the number of true columns over all ranks; None means that none of them is padding.

    Raises:
        ValueError: if the ranks do not have room for ``vocab_size`` columns.
    """
    rank, num_ranks = (0, 1) if tp_group is None else (tp_group.rank(), tp_group.size())
    if vocab_size is None:
        vocab_size = num_columns * num_ranks
    if not 1 <= vocab_size <= num_columns * num_ranks:
        raise ValueError(f"vocab_size {vocab_size} does not fit {num_ranks} rank(s) of {num_columns} columns each")
    first = rank * num_columns
    return VocabShard(first, min(max(vocab_size - first, 0), num_columns), vocab_size)


def check_shapes(logits: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless ``labels`` has the shape of ``logits`` without its last dimension."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}")


def gradient_buffer(logits: Tensor, shard: VocabShard, inplace: bool) -> Tensor:
    """Where to write the gradient: the logits' own storage or a new one, with the padding columns already 0."""
    gradient = logits if inplace else torch.empty_like(logits)
    if shard.num_columns < gradient.size(1):
        gradient[:, shard.num_columns :].zero_()
    return gradient


def logits_at(logits: Tensor, shard: VocabShard, index: Tensor) -> Tensor:
    """``logits[token, index[token]]`` in float32 where this rank owns that column, else 0."""
    found = logits[torch.arange(len(index), device=index.device), shard.position(index)].float()
    return torch.where(shard.owns(index), found, 0.0)


def overwrite_at(gradient: Tensor, shard: VocabShard, index: Tensor, value: Tensor, where: Tensor) -> None:
    """Set ``gradient[token, index[token]] = value[token]``, for the tokens in ``where`` whose column this rank owns."""
    entry = torch.arange(len(index), device=index.device), shard.position(index)
    # The others write back what is at position 0: a boolean index would make a GPU wait for the number of owned tokens.
    # Not scatter_: on a CPU it copies all of a bfloat16 tensor, twice.
    owned = where & shard.owns(index)
    gradient[entry] = torch.where(owned, value.to(gradient.dtype), gradient[entry])


def gather(local: list[Tensor], tp_group: dist.ProcessGroup | None) -> Tensor:
    """Each rank's ``[tokens]`` tensors of 4 bytes per token, as float32 ``[tokens, ranks, numbers]``; one all-gather.

    Integers travel as the bits of a float32: exact, where a conversion would round indices above 2**24.
    """
    packed = torch.stack([numbers.view(torch.float32) for numbers in local])
    everyone = packed
    if tp_group is not None and tp_group.size() > 1:
        everyone = packed.new_empty((tp_group.size() * len(local), *packed.shape[1:]))
        dist.all_gather_into_tensor(everyone, packed, group=tp_group)
    return everyone.view(-1, *packed.shape).permute(2, 0, 1)


def by_number(everyone: Tensor) -> list[Tensor]:
    """What :func:`gather` returned, taken apart to one ``[ranks, tokens]`` for each number."""
    return list(everyone.permute(2, 1, 0).unbind(0))


def merge_exponentials(maxima: Tensor, sums: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Merge ``maxima`` and ``sums`` of exp(scale * (logit - maximum)), ``[parts, tokens]``, of parts of the vocabulary.

    Returns:
        Maximum and sum over all parts, ``[tokens]``, and exp(scale * (part's maximum - maximum)), ``[parts, tokens]``.
    """
    maximum = maxima.amax(0)
    difference = maxima - maximum
    weights = (difference if scale == 1 else scale * difference).exp()
    return maximum, (weights * sums).sum(0), weights


def merge_cross_sums(weights: Tensor, cross_sums: Tensor, sums: Tensor, shift: Tensor) -> Tensor:
    """Merge sums of exp(s) * (s - t), ``[parts, tokens]``, whose s and t are relative to each part's own maxima.

    ``weights`` and ``sums`` belong to s (``merge_exponentials``); ``shift`` is what must be added to each part's s - t
    to make it relative to the maxima of all parts.
    """
    return (weights * (cross_sums + sums * shift)).sum(0)
