"""A few hostile inputs of each kind; tests/faults/fuzz.py tries them by the hour."""

import pytest

from tests.faults.fuzz import run_target
from tests.faults.fuzz_targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_refused_or_understood(name: str) -> None:
    assert run_target(name, number=0, num_examples=20).total() >= 20
