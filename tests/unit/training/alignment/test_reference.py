"""The reference's sums are computed in parts that stay, so that a killed run goes on where it stopped."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_mixcpt.data.datasets.encoded_samples import Document
from megatron_mixcpt.training.alignment import reference
from megatron_mixcpt.training.alignment.reference import precompute_reference

NUM_PAIRS = 5


class Killed(Exception):
    """The run ends here."""


class Runner:
    """Its sum of a sequence is that of its scored tokens; ``calls`` left before it is killed."""

    calls = 100
    num_sequences = 0

    def __init__(self, source: Any, dtype: torch.dtype) -> None:
        pass

    def sequence_log_probs(self, sequences: list, batch_tokens: int) -> torch.Tensor:
        if not type(self).calls:
            raise Killed
        type(self).calls -= 1
        type(self).num_sequences += len(sequences)
        return torch.tensor([float(part.tokens[-part.num_scored :].sum()) for part in sequences], dtype=torch.float64)


def pair(number: int) -> tuple[Document, Document]:
    tokens = np.array([7, number, 10 * number], np.int32)
    return (
        Document(tokens, np.array([False, True, True])),
        Document(tokens, np.array([False, False, True])),
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(reference, "PART_PAIRS", 2)
    monkeypatch.setattr(reference, "ForwardRunner", Runner)
    monkeypatch.setattr(Runner, "calls", 100)
    monkeypatch.setattr(Runner, "num_sequences", 0)
    source = SimpleNamespace(described=lambda: {"model": "a"})
    return SimpleNamespace(
        args=SimpleNamespace(rank=0, params_dtype=torch.float32, seq_length=8),
        flags=SimpleNamespace(source=source, shape=SimpleNamespace(micro_batch_size=1)),
        samples=[pair(number) for number in range(NUM_PAIRS)],
        cache=tmp_path / "dpo-1",
    )


def check(run: Any) -> None:
    sums = precompute_reference(run, None).sums  # type: ignore[arg-type] # the groups of one process
    assert sums.tolist() == [[11.0 * number, 10.0 * number] for number in range(NUM_PAIRS)]


def test_a_killed_run_goes_on(run: Any) -> None:
    Runner.calls = 2
    with pytest.raises(Killed):
        precompute_reference(run, None)  # type: ignore[arg-type]
    Runner.calls, Runner.num_sequences = 100, 0
    check(run)
    assert Runner.num_sequences == 2  # the last pair alone
    Runner.num_sequences = 0
    check(run)
    assert Runner.num_sequences == 0


def test_another_model_has_sums_of_its_own(run: Any) -> None:
    check(run)
    run.flags.source = SimpleNamespace(described=lambda: {"model": "b"})
    Runner.num_sequences = 0
    check(run)
    assert Runner.num_sequences == 2 * NUM_PAIRS


def test_without_a_cache_nothing_is_written(run: Any, tmp_path: Path) -> None:
    run.cache = None
    check(run)
    assert not list(tmp_path.iterdir())
