"""What every test gets: no network, one thread per process, and the repository's root as a fixture."""

import os
from pathlib import Path

import pytest

# Set before torch and transformers are imported. Ranks inherit them; two ranks with a thread pool each on two cores
# would spend their time waiting for one another.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from megatron_mixcpt import testing  # noqa: E402

testing.PRELOADED.append("tests.rank_preload")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root, for tests that read shipped files or run tools as commands."""
    return Path(__file__).resolve().parent.parent
