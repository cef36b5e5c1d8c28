"""These tests need Transformer Engine, which ``tests/run_te.sh`` builds: the marker keeps them out of other runs."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; ``pyproject.toml`` deselects the marker unless ``-m`` asks for it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("transformer_engine")


@pytest.fixture(scope="session", autouse=True)
def transformer_engine() -> None:
    """Fail with the way out where Transformer Engine is missing: a skipped test would look like a passed one."""
    if find_spec("transformer_engine") is None:
        pytest.exit("Transformer Engine is not installed: run bash tests/run_te.sh", returncode=1)
