"""The choice of samples depends on nothing but seed and index."""

import pytest
import torch

from megatron_mixcpt.distillation.distilled_samples import is_distilled


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_share(fraction: float) -> None:
    chosen = is_distilled(torch.arange(20_000), fraction=fraction, seed=1)
    # Four standard deviations of a mean of 20,000 draws are at most 0.015.
    assert chosen.float().mean().item() == pytest.approx(fraction, abs=0.015)


def test_depends_on_index_alone() -> None:
    index = torch.arange(1000)
    whole = is_distilled(index, fraction=0.5, seed=7)
    order = torch.randperm(1000)
    assert torch.equal(is_distilled(index[order].view(10, 100), fraction=0.5, seed=7).view(-1), whole[order])


def test_smaller_shares_are_nested() -> None:
    index = torch.arange(1000)
    few, many = (is_distilled(index, fraction=fraction, seed=3) for fraction in (0.2, 0.6))
    assert not (few & ~many).any()


def test_seeds_choose_differently() -> None:
    first, second = (is_distilled(torch.arange(10_000), fraction=0.5, seed=seed) for seed in (1, 2))
    # Independent choices agree on half of the samples: 0.5 with a standard deviation of 0.005.
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_ends_are_exact() -> None:
    index = torch.arange(1000)
    assert not is_distilled(index, fraction=0.0, seed=0).any()
    assert is_distilled(index, fraction=1.0, seed=0).all()
