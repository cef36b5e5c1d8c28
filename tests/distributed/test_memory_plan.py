"""The memory plan is what training takes: tiny runs, measured by what torch's allocator gave out."""

from pathlib import Path

import pytest

from benchmarks.memory.measured import make_world, measured, planned


@pytest.mark.parametrize("name", ["TP1", "PP2", "CP2"])
def test_predicted_is_measured(name: str, tmp_path: Path) -> None:
    world = make_world(tmp_path)
    # Temporaries of single operations are estimated, not counted one by one: within a tenth is what the plan promises.
    assert planned(world, name) == pytest.approx(measured(world, name), rel=0.1)
