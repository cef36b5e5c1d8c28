"""Passes over a dataset follow one another: what each of them holds, counted on the samples that training draws."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_mixcpt.data.datasets.mixture_datasets import build_mixture_datasets
from megatron_mixcpt.data.datasets.sequence_origins import describe_sequence
from megatron_mixcpt.data.mixture.plan import plan_mixture
from tests.unit.data.datasets.test_mixture_datasets import SEQUENCE_LENGTH, engine_config
from tests.unit.data.mixture.test_plan import write_mixture


def build(folder: Path, lengths: list[int], **options):
    """A mixture of documents of these lengths, whose tokens are numbered through, and its training dataset."""
    manifest = write_mixture(folder, cpt=lengths)
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, **options)
    train, _ = build_mixture_datasets(manifest, plan, engine_config(manifest, "100,0,0"), num_valid_sequences=0)
    assert len(train) == plan.num_sequences
    return manifest, train


def inputs_of(train, first: int, last: int) -> list[int]:
    return [token for index in range(first, last) for token in train[index]["tokens"].tolist()]


def test_a_pass_ends_before_the_next_begins(tmp_path: Path) -> None:
    """Twenty sequences a pass: the first twenty samples hold every token once, so do the next; the third has half."""
    _, train = build(tmp_path, [13, 27] * 8, epochs=2.5)
    passes = [inputs_of(train, 0, 20), inputs_of(train, 20, 40), inputs_of(train, 40, len(train))]
    assert [len(tokens) for tokens in passes] == [320, 320, 9 * SEQUENCE_LENGTH]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(320))
    assert passes[0] != passes[1]
    assert max(Counter(passes[2]).values()) == 1


def test_a_sequence_over_a_border_begins_in_the_earlier_pass(tmp_path: Path) -> None:
    """150 tokens a pass: sequences 0 to 9 begin in the first, the last of them six tokens before its end."""
    _, train = build(tmp_path, [7, 8] * 10, epochs=3)
    first = Counter(inputs_of(train, 0, 10))
    assert len(first) == 150 and first.total() == 160
    assert sum(count == 2 for count in first.values()) == 10
    # After each pass, every token has been seen as often as there were passes, or once more.
    assert set(Counter(inputs_of(train, 0, 19)).values()) == {2, 3}


def test_a_pass_may_be_shorter_than_a_sequence(tmp_path: Path) -> None:
    _, train = build(tmp_path, [5], epochs=10)
    assert sorted(Counter(inputs_of(train, 0, len(train))).values()) == [9, 9, 10, 10, 10]


def test_orders_are_the_same_again_and_others_with_another_seed(tmp_path: Path) -> None:
    manifest, train = build(tmp_path, [13, 27] * 8, epochs=2)
    _, again = build(tmp_path, [13, 27] * 8, epochs=2)  # from the cache
    assert inputs_of(train, 0, len(train)) == inputs_of(again, 0, len(again))
    config = engine_config(manifest, "100,0,0")
    config.random_seed = 5
    plan = plan_mixture(manifest, sequence_length=SEQUENCE_LENGTH, epochs=2)
    other, _ = build_mixture_datasets(manifest, plan, config, num_valid_sequences=0)
    assert inputs_of(train, 0, 20) != inputs_of(other, 0, 20)


@pytest.mark.parametrize("index", [0, 25])
def test_a_sequence_of_any_pass_says_where_it_is_from(tmp_path: Path, index: int) -> None:
    manifest, train = build(tmp_path, [13, 27] * 8, epochs=2)
    ends = np.cumsum([13, 27] * 8)
    expected = [int(np.searchsorted(ends, token, side="right")) for token in train[index]["tokens"].tolist()]
    last = int(np.searchsorted(ends, int(train[index]["labels"][-1]), side="right"))
    documents = list(dict.fromkeys([*expected, last]))
    assert describe_sequence(train, index, manifest) == ", ".join(f"cpt document {number}" for number in documents)
