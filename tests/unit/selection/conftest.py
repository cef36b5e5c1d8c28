"""Fixtures of the selection's tests."""

import pytest

from tests.unit.selection.scores import shuffled_lines


@pytest.fixture
def lines() -> list[dict]:
    """60 samples with many ties, in no order."""
    return shuffled_lines()
