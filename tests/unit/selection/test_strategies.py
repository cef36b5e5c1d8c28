"""Strategies pick what sorting would, whatever the order of the file."""

import pytest

from megatron_mixcpt.selection.strategies import STRATEGIES, pick
from tests.unit.selection.scores import line, ranked


@pytest.mark.parametrize("num_wanted", [1, 7, 10, 59, 60, 90])
def test_strategies_pick_what_sorting_would(lines, num_wanted):
    high, low = ranked(lines, lambda line: -line["fas"]), ranked(lines, lambda line: line["fas"])
    assert pick(lines, STRATEGIES["high"], num_wanted, 0) == set(high[:num_wanted])
    assert pick(lines, STRATEGIES["low"], num_wanted, 0) == set(low[:num_wanted])
    easy = ranked(lines, lambda line: line["perplexity"])
    assert pick(lines, STRATEGIES["low-perplexity"], num_wanted, 0) == set(easy[:num_wanted])
    num_high = -(-num_wanted // 2)
    expected_half = set(high[:num_high]) | set(high[max(len(high) - num_wanted // 2, 0) :])
    assert pick(lines, STRATEGIES["half"], num_wanted, 0) == expected_half
    assert len(expected_half) == min(num_wanted, 60)


def test_random_is_drawn_by_seed_and_content_alone(lines):
    first = pick(lines, STRATEGIES["random"], 20, seed=1)
    assert first == pick(reversed(lines), STRATEGIES["random"], 20, seed=1)
    assert len(first) == 20 and first != pick(lines, STRATEGIES["random"], 20, seed=2)
    assert first <= pick(lines, STRATEGIES["random"], 30, seed=1)


def test_all_equal_halves_do_not_meet():
    equal = [line(number, 1.0) for number in range(10)]
    assert len(pick(equal, STRATEGIES["half"], 8, 0)) == 8
