"""Batches hold every sequence once, with little padding, and labels where they belong."""

import numpy as np
import pytest

from megatron_mixcpt.inference.batches import (
    IGNORED,
    MAX_PADDING,
    ScoredSequence,
    idle_batch,
    make_batch,
    padded_length,
    plan_batches,
)


@pytest.mark.parametrize("seed", range(4))
def test_padding_is_bounded_and_nothing_is_lost(seed):
    lengths = np.random.default_rng(seed).geometric(0.01, 700).tolist()
    batches = plan_batches(lengths, max_tokens=2048)
    assert sorted(place for batch in batches for place in batch) == list(range(700))
    for batch in batches:
        size = len(batch) * padded_length(max(lengths[place] for place in batch))
        assert size <= 2048 or len(batch) == 1
        assert sum(padded_length(lengths[place]) for place in batch) >= (1 - MAX_PADDING) * size
    assert len(batches) < 200  # 700 sequences of about 100 tokens


@pytest.mark.parametrize(
    ("num_tokens", "length"), [(1, 8), (8, 8), (9, 16), (64, 64), (65, 72), (128, 128), (129, 144), (4000, 4096)]
)
def test_lengths_by_hand(num_tokens, length):
    assert padded_length(num_tokens) == length


def test_batches_are_of_few_shapes():
    """As many lengths of texts as a scoring run meets: a few hundred long ones, up to 4,096 tokens."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.7, 0.8, 5000), 1, 4096).astype(int).tolist()
    every = [padded_length(length) for length in range(1, 4097)]
    assert len(set(every)) == 56  # 8 up to 64, then 8 for each of 6 doublings
    assert all(0 <= longer - length < max(8, length / 8) for length, longer in enumerate(every, start=1))
    sequences = [ScoredSequence(np.zeros(length + 1, np.int32), 1) for length in lengths]
    batches = plan_batches(lengths, max_tokens=16_384)
    shapes = {make_batch(sequences, batch).tokens.shape for batch in batches}
    assert len(shapes) < 0.6 * len(batches)
    assert sum(lengths) > 0.92 * sum(len(batch) * padded_length(lengths[batch[0]]) for batch in batches)


def test_a_batch_by_hand():
    """Two sequences, [5 | 6 7] and [8 9 | 1 2] (what is scored stands right of the bar)."""
    sequences = [ScoredSequence(np.array([5, 6, 7], np.int32), 2), ScoredSequence(np.array([8, 9, 1, 2], np.int32), 2)]
    assert plan_batches([2, 3], max_tokens=100) == [[1, 0]]
    batch = make_batch(sequences, [1, 0])
    assert batch.places == (1, 0)
    assert batch.tokens.tolist() == [[8, 9, 1] + 5 * [0], [5, 6] + 6 * [0]]
    assert batch.labels.tolist() == [[IGNORED, 1, 2] + 5 * [IGNORED], [6, 7] + 6 * [IGNORED]]


def test_no_sequence_makes_no_batch():
    assert plan_batches([], max_tokens=100) == []


def test_lengths_of_different_kinds_share_no_batch():
    lengths = [60, 70, 64, 65, 58, 63]
    assert plan_batches(lengths, 4096, max_padding=1.0) == [[1, 3, 2, 5, 0, 4]]
    assert plan_batches(lengths, 4096, max_padding=1.0, kind_of=lambda length: length > 64) == [[1, 3], [2, 5, 0, 4]]
    sequences = [ScoredSequence(np.zeros(length + 1, np.int32), 1) for length in lengths]
    batch = make_batch(sequences, [1, 3])
    assert batch.length == 70 and batch.tokens.shape == (2, 72)


def test_an_idle_batch_scores_nothing():
    """For a rank that has no batch left, and whose experts the others need."""
    batch = idle_batch()
    assert batch.places == () and batch.tokens.shape == (1, 8)
    assert (batch.labels == IGNORED).all()
