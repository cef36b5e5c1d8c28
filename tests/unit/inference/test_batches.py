"""Batches hold every sequence once, with little padding, and labels where they belong."""

import numpy as np
import pytest

from megatron_mixcpt.inference.batches import IGNORED, MAX_PADDING, ScoredSequence, make_batch, plan_batches


@pytest.mark.parametrize("seed", range(4))
def test_padding_is_bounded_and_nothing_is_lost(seed):
    lengths = np.random.default_rng(seed).geometric(0.01, 700).tolist()
    batches = plan_batches(lengths, max_tokens=2048)
    assert sorted(place for batch in batches for place in batch) == list(range(700))
    for batch in batches:
        size = len(batch) * max(lengths[place] for place in batch)
        assert size <= 2048 or len(batch) == 1
        assert sum(lengths[place] for place in batch) >= (1 - MAX_PADDING) * size
    assert len(batches) < 200  # 700 sequences of about 100 tokens


def test_a_batch_by_hand():
    """Two sequences, [5 | 6 7] and [8 9 | 1 2] (what is scored stands right of the bar)."""
    sequences = [ScoredSequence(np.array([5, 6, 7], np.int32), 2), ScoredSequence(np.array([8, 9, 1, 2], np.int32), 2)]
    assert plan_batches([2, 3], max_tokens=100, max_padding=0.2) == [[1, 0]]
    batch = make_batch(sequences, [1, 0])
    assert batch.places == (1, 0)
    assert batch.tokens.tolist() == [[8, 9, 1], [5, 6, 0]]
    assert batch.labels.tolist() == [[IGNORED, 1, 2], [6, 7, IGNORED]]


def test_no_sequence_makes_no_batch():
    assert plan_batches([], max_tokens=100) == []
