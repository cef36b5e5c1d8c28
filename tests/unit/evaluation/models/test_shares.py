"""Batches that are dealt to ranks; ``tests/distributed/test_evaluate.py`` has the ranks and their answers."""

from itertools import chain

from megatron_mixcpt.evaluation.models.shares import generation_batches, likelihood_batches


def test_answers_of_one_token_that_share_a_context_are_dealt_together():
    """Longest first, as HFLM forms its batches: three contexts, of which the first has three choices."""
    choices = [("", [1, 2, 3], [token]) for token in (7, 8, 9)]
    others = [("", [4], [5, 6, 7, 8]), ("", [1], [2])]
    assert likelihood_batches([others[1], *choices, others[0]], batch_size=1) == [[4], [1, 2, 3], [0]]
    assert likelihood_batches([others[1], *choices, others[0]], batch_size=2) == [[4, 1, 2, 3], [0]]


def test_batches_of_generation_keep_to_one_kind():
    """Longest prompts first, those of other options apart."""
    short, long = {"until": ["a"]}, {"until": ["b"]}
    requests = [("xx", short), ("xxxx", short), ("xxx", long), ("x", short), ("xxxxx", short)]
    batches = generation_batches(requests, len, batch_size=2)
    assert sorted(chain(*batches)) == list(range(5))
    assert [batch for batch in batches if batch != [2]] == [[4, 1], [0, 3]]
