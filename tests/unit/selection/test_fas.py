"""The format alignment score of one sample, worked out by hand."""

import math

import numpy as np
import pytest

from megatron_mixcpt.data.chat.encoding import EncodedPair, EncodedResponse
from megatron_mixcpt.selection.fas import figures, sequences_of


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


def test_an_instruction_sample():
    """3 tokens with log-probabilities adding up to -6 after the query and -9 alone: losses 2 and 3, score 2/3.

    The end of turn, of two tokens, is in neither loss.
    """
    encoded = EncodedResponse(ids(1, 2), ids(7, 8, 9, 4, 5), num_end_tokens=2)
    given_query, alone = sequences_of(encoded, start_id=0)
    assert given_query.tokens.tolist() == [1, 2, 7, 8, 9] and alone.tokens.tolist() == [0, 7, 8, 9]
    assert given_query.num_scored == alone.num_scored == 3
    assert figures(encoded, -6.0, -9.0) == {
        "fas": pytest.approx(2 / 3),
        "loss_given_query": 2.0,
        "loss_alone": 3.0,
        "perplexity": pytest.approx(math.exp(2)),
        "num_query_tokens": 2,
        "num_response_tokens": 3,
    }


def test_a_preference_sample():
    """Means, not sums: 2 tokens adding up to -2 against 4 adding up to -2, losses 1 and 1/2, score 2.

    The ends of turn, of one and of two tokens, are left out.
    """
    encoded = EncodedPair(ids(1), ids(7, 8, 9), ids(3, 4, 5, 6, 9, 9), num_end_tokens=(1, 2))
    chosen, rejected = sequences_of(encoded, start_id=0)
    assert chosen.tokens.tolist() == [1, 7, 8] and rejected.tokens.tolist() == [1, 3, 4, 5, 6]
    found = figures(encoded, -2.0, -2.0)
    assert (found["fas"], found["loss_chosen"], found["loss_rejected"]) == (2.0, 1.0, 0.5)
    assert (found["num_query_tokens"], found["num_response_tokens"], found["num_rejected_tokens"]) == (1, 2, 4)


@pytest.mark.parametrize("sums", [(math.nan, -1.0), (-math.inf, -1.0), (-1.0, 0.0)])
def test_figures_that_are_no_numbers_are_no_score(sums):
    assert figures(EncodedResponse(ids(1), ids(2, 3)), *sums) is None
