"""Which columns a rank holds, and what is read from and written into them."""

import pytest
import torch

from megatron_mixcpt.losses.vocab_parallel import (
    VocabShard,
    by_number,
    check_shapes,
    gather,
    gradient_buffer,
    is_true,
    logits_at,
    overwrite_at,
    vocab_shard,
)

SHARD = VocabShard(first=4, num_columns=3, vocab_size=7)
"""The second of two ranks of four columns, the last of which is padding."""
INDEX = torch.tensor([4, 6, 7, 3, -1])
"""Its first and last true column, padding, the other rank's, none."""


def test_one_rank_holds_all() -> None:
    assert vocab_shard(8, None, None) == VocabShard(0, 8, 8)
    assert vocab_shard(8, 7, None) == VocabShard(0, 7, 7)
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=rf"vocab_size {wrong} does not fit 1 rank\(s\) of 8 columns"):
            vocab_shard(8, wrong, None)


def test_what_a_rank_owns() -> None:
    assert SHARD.owns(INDEX).tolist() == [True, True, False, False, False]
    assert is_true(INDEX, SHARD.vocab_size).tolist() == [True, True, False, True, False]
    assert SHARD.position(INDEX).tolist() == [0, 2, 0, 0, 0]


def test_reads_and_writes_only_its_columns() -> None:
    logits = torch.arange(20.0).view(5, 4)
    assert logits_at(logits, SHARD, INDEX).tolist() == [0.0, 6.0, 0.0, 0.0, 0.0]
    where = torch.tensor([True, False, True, True, True])
    overwrite_at(logits, SHARD, INDEX, torch.full((5,), -1.0), where)
    expected = torch.arange(20.0).view(5, 4)
    expected[0, 0] = -1.0
    assert torch.equal(logits, expected)


def test_the_gradient_of_padding_is_zero_from_the_start() -> None:
    logits = torch.ones(2, 4)
    assert gradient_buffer(logits, SHARD, inplace=False)[:, 3].tolist() == [0.0, 0.0]
    assert torch.equal(logits, torch.ones(2, 4))
    assert gradient_buffer(logits, SHARD, inplace=True) is logits and logits[:, 3].tolist() == [0.0, 0.0]


def test_integers_are_gathered_exactly() -> None:
    numbers, indices = by_number(gather([torch.tensor([0.5]), torch.tensor([2**24 + 1], dtype=torch.int32)], None))
    assert numbers.tolist() == [[0.5]] and indices.view(torch.int32).tolist() == [[2**24 + 1]]


def test_shapes_are_checked() -> None:
    check_shapes(torch.zeros(2, 3, 5), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"labels of shape \(3, 2\) do not fit logits of shape \(2, 3, 5\)"):
        check_shapes(torch.zeros(2, 3, 5), torch.zeros(3, 2))
