"""Batches do not depend on the layout; rows are full and ranks balanced; what the layout asks for is kept."""

import numpy as np
import pytest

from megatron_mixcpt.data.datasets.packing import BatchOrder, Fill, RankRows, RowShape, lay_out, length_step


def order(samples: int | np.ndarray = 10, size: int = 4, epochs: int = 2, seed: int = 7) -> BatchOrder:
    return BatchOrder(samples, global_batch_size=size, epochs=epochs, seed=seed)


def batches(of: BatchOrder) -> list[list[int]]:
    return [of.batch(index).tolist() for index in range(of.num_batches)]


def test_every_epoch_holds_every_sample_once_the_rest_in_its_last_batch() -> None:
    found = batches(order())
    assert [len(batch) for batch in found] == [4, 4, 2] * 2
    for epoch in (found[:3], found[3:]):
        assert sorted(sum(epoch, [])) == list(range(10))


def test_each_epoch_has_an_order_of_its_own_and_the_seed_decides_it() -> None:
    found = batches(order())
    assert found[:3] != found[3:]
    assert found == batches(order())
    assert found != batches(order(seed=8))
    assert found[:3] != [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_order_is_that_of_numpys_permutation() -> None:
    """Of (seed, epoch): a run that is resumed after an upgrade must go on with the same batches."""
    expected = np.random.default_rng((7, 1)).permutation(10).tolist()
    assert sum(batches(order())[3:], []) == expected


def test_chosen_samples_are_what_batches_hold() -> None:
    assert sorted(sum(batches(order(np.array([3, 5, 8]), epochs=1)), [])) == [3, 5, 8]


def test_samples_before_a_batch_count_the_short_ones_of_each_epoch() -> None:
    assert [order().num_samples_before(index) for index in range(7)] == [0, 4, 8, 10, 14, 18, 20]


def shape(**changed: int | bool) -> RowShape:
    return RowShape(**({"row_length": 2048, "length_step": 64} | changed))  # type: ignore[arg-type]


def check(ranks: list[RankRows], lengths: list[int], of: RowShape) -> None:
    """Every sample lies once in a row that has room for it; all ranks have as many microbatches, of as many rows."""
    rows = [row for rank in ranks for microbatch in rank.microbatches for row in microbatch]
    assert sorted(sum(rows, ())) == list(range(len(lengths)))
    assert len(ranks) == of.data_parallel_size
    (count,) = {len(rank.microbatches) for rank in ranks}
    assert count % of.microbatches_multiple == 0
    for rank in ranks:
        for microbatch, length in zip(rank.microbatches, rank.lengths, strict=True):
            assert len(microbatch) == of.micro_batch_size
            assert max(sum(lengths[sample] for sample in row) for row in microbatch) <= length <= of.row_length
            assert length % of.length_step == 0 or length == of.row_length
    if not of.packing:
        assert all(len(row) <= 1 for row in rows)
    if of.is_uniform:
        assert all(len(set(rank.lengths)) == 1 for rank in ranks)


@pytest.mark.parametrize(
    "of",
    [
        shape(),
        shape(data_parallel_size=3),
        shape(data_parallel_size=16, micro_batch_size=2),
        shape(data_parallel_size=2, microbatches_multiple=4, is_uniform=True),
        shape(data_parallel_size=200, microbatches_multiple=2),  # more ranks than samples: empty rows
        shape(data_parallel_size=5, packing=False),
        shape(row_length=2050, length_step=128),  # no multiple of the step
    ],
)
def test_a_layout_keeps_what_is_asked_of_it(of: RowShape) -> None:
    lengths = paper_like(128, seed=1).tolist()
    check(lay_out(range(128), lengths, of), lengths, of)


def test_two_samples_that_do_not_share_a_row_need_two() -> None:
    (rank,) = lay_out([4, 9], [100, 30], shape(row_length=128))
    assert rank == RankRows((((4,),), ((9,),)), (128, 64))


def test_as_few_rows_as_their_positions_may_be_too_few() -> None:
    """By hand: 3 x 60 positions would fill two rows of 100, in which no two of them fit."""
    (rank,) = lay_out(range(3), [60] * 3, shape(row_length=100, length_step=10))
    assert rank.lengths == (60, 60, 60)


def test_rows_are_of_equal_length_rather_than_full_and_empty() -> None:
    """By hand: 4 x 40 positions take two rows of at most 100; 2 + 2 make both 80, which 3 + 1 would not."""
    (rank,) = lay_out(range(4), [40] * 4, shape(row_length=100, length_step=8))
    assert rank.lengths == (80, 80)


def test_ranks_have_about_equally_many_positions() -> None:
    """By hand: 60, then 50, 30, 20 to the emptier of two ranks gives 60 + 20 and 50 + 30."""
    ranks = lay_out(range(4), [60, 50, 30, 20], shape(data_parallel_size=2, length_step=1))
    assert [rank.lengths for rank in ranks] == [(80,), (80,)]


def paper_like(number: int, seed: int) -> np.ndarray:
    """Lengths as those of the paper's conversations: lognormal, about 519 on average, at most 2,048."""
    return np.clip(np.random.default_rng(seed).lognormal(5.99, 0.8, number), 8, 2048).astype(np.int64)


@pytest.mark.parametrize("ranks", [1, 16, 32])
def test_rows_are_full_and_ranks_balanced_at_any_number_of_ranks(ranks: int) -> None:
    lengths, fill = paper_like(4096, seed=0), Fill()
    of = BatchOrder(len(lengths), global_batch_size=128, epochs=1, seed=0)
    for index in range(of.num_batches):
        samples = of.batch(index)
        laid = lay_out(samples.tolist(), lengths[samples].tolist(), shape(data_parallel_size=ranks))
        fill.add(int(lengths[samples].sum()), laid)
    assert fill.filled > 0.96
    assert fill.balance > 0.94
    assert len(fill.lengths) <= 32


def test_padding_and_the_slowest_rank_are_what_fill_says() -> None:
    """By hand: 90 tokens in places of 64 + 64 on one rank and 64 on the other."""
    fill = Fill()
    fill.add(90, [RankRows((((0,), (1,)),), (64,)), RankRows((((2,),),), (64,))])
    assert (fill.filled, fill.balance) == (90 / 192, 192 / 256)


@pytest.mark.parametrize(
    ("row_length", "divisor", "step"), [(160, 1, 64), (4096, 8, 64), (4097, 1, 128), (2048, 128, 128)]
)
def test_lengths_are_few(row_length: int, divisor: int, step: int) -> None:
    assert length_step(row_length, divisor) == step
