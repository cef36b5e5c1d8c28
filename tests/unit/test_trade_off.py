"""What is kept at equal gain, by hand, and what the table and the picture say of it."""

import math
from pathlib import Path

import pytest

from examples.reproduce.trade_off import Cell, kept_at_equal_gain, picture, table


def cell(method: str, alpha: float, seed: int, gain: float, change: float) -> Cell:
    return {"method": method, "alpha": alpha, "seed": seed, "gain": gain, "change": change}


# Seed 1: from (10, 0), lssd goes straight to (6, 4); kd has a bend at (8, 1) and goes on to (4, 5). Both reach 6 to 10.
# lssd minus kd: 2 - 1 = 1 at 8, 0 at 10, and 4 - 3 = 1 at 6. The mean over 6..10 is (1 * 2 + 0.5 * 2) / 4 = 0.75.
SEED_1 = [
    cell("none", 1.0, 1, 10.0, 0.0),
    cell("lssd", 0.5, 1, 6.0, 4.0),
    cell("kd", 0.8, 1, 8.0, 1.0),
    cell("kd", 0.5, 1, 4.0, 5.0),
]
# Seed 2: lssd from (10, 0) to (8, 1), kd from (10, 0) to (8, 1.5): -0.5 at 8, 0 at 10, on average -0.25.
SEED_2 = [cell("none", 1.0, 2, 10.0, 0.0), cell("lssd", 0.5, 2, 8.0, 1.0), cell("kd", 0.8, 2, 8.0, 1.5)]


def test_kept_at_equal_gain() -> None:
    kept = kept_at_equal_gain([*SEED_1, *SEED_2], "lssd", "kd")
    assert kept.by_seed == pytest.approx({1: 0.75, 2: -0.25})
    assert kept.mean == pytest.approx(0.25)
    # Two differences 1 apart: standard error 0.5, and 12.706 of them on either side.
    assert (kept.low, kept.high) == pytest.approx((0.25 - 12.706 * 0.5, 0.25 + 12.706 * 0.5))


def test_the_order_of_cells_and_methods() -> None:
    kept = kept_at_equal_gain([*SEED_2, *reversed(SEED_1)], "kd", "lssd")
    assert kept.by_seed == pytest.approx({1: -0.75, 2: 0.25})


def test_kept_at_one_gain() -> None:
    kept = kept_at_equal_gain(SEED_1, "lssd", "kd", gain=7.0)
    assert kept.by_seed == pytest.approx({1: 1.0})  # 3 against 2, halfway between 1 and 3
    assert math.isnan(kept.low) and math.isnan(kept.high)
    with pytest.raises(ValueError, match=r"gain 5.0: seed 1 has both lssd and kd from 6.000 to 10.000 only"):
        kept_at_equal_gain(SEED_1, "lssd", "kd", gain=5.0)


def test_methods_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no seed has cells of both lssd and l2"):
        kept_at_equal_gain(SEED_1, "lssd", "l2")
    apart = [cell("lssd", 0.5, 1, 6.0, 4.0), cell("kd", 0.5, 1, 5.0, 4.0)]
    with pytest.raises(ValueError, match="seed 1: lssd and kd reach no gain in common"):
        kept_at_equal_gain(apart, "lssd", "kd")


def test_table() -> None:
    assert table([*SEED_1, *SEED_2]).splitlines()[2:] == [
        "| `none` |  | 2 | 10.00 ± 0.00% | 0.00 ± 0.00% |",
        "| `lssd` | 0.5 | 2 | 7.00 ± 1.41% | 2.50 ± 2.12% |",
        "| `kd` | 0.8 | 2 | 8.00 ± 0.00% | 1.25 ± 0.35% |",
        "| `kd` | 0.5 | 1 | 4.00% | 5.00% |",
    ]


def test_picture(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "trade-off.png"
    picture([*SEED_1, *SEED_2], path, "Learning against keeping")
    assert path.read_bytes().startswith(b"\x89PNG")
