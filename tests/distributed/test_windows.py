"""Sliding windows through the real training entry, where ranks share heads, hidden states and the sequence.

The window, 12 tokens, ends inside the chunks of 16 that each rank holds. Float32: as in ``test_pretrain.py``. All
layouts and families: ``benchmarks/parity/first_iteration.py``.
"""

from pathlib import Path

import pytest

from tests.distributed.dense_iteration import expected_first_iteration
from tests.distributed.tiny_run import flags, make_world, train

LAYOUT = ["--tensor-model-parallel-size", "2", "--sequence-parallel", "--context-parallel-size", "2"]


@pytest.mark.parametrize("documents", [False, True])
def test_first_iteration_is_that_of_transformers(documents: bool, tmp_path: Path) -> None:
    kind = "mistral-window"
    world = make_world(tmp_path, [kind])
    more = ["--document-masking"] if documents else []
    found = train(4, [*flags(world, kind, iterations=1), *LAYOUT, *more], tmp_path / "log")
    expected = expected_first_iteration(world, kind, documents=documents)
    for key in ("loss", "ntp loss", "lssd loss", "grad-norm"):
        assert found[key][0] == pytest.approx(expected[key], rel=2e-4), key
