"""Progress of scoring: samples of all ranks, whatever share of a part one rank has."""

import pytest

from megatron_mixcpt.jobs import progress
from megatron_mixcpt.selection.scoring_progress import ScoringProgress


def test_totals_are_of_all_ranks_and_time_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 samples, 20 done before; a part of 40 samples, 80 sequences, of which each of 2 ranks scores 40.

    After this rank's first 20 sequences, half of the part is done by both; after the part, 60 of 100.
    """
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with ScoringProgress(100, 20, dp_size=2) as shown:
        shown.start_part(40, 80)
        now[0] = 10.0
        shown.add_sequences(20)
        assert capsys.readouterr().err == "score: 40% of 100 samples, 2.0 a second, 30 s left\n"
        now[0] = 20.0
        shown.add_sequences(25)  # more than half, as batches are of many sizes
        assert capsys.readouterr().err == "score: 60% of 100 samples, 2.0 a second, 20 s left\n"
        now[0] = 40.0
        shown.end_part()
        shown.start_part(40, 0)  # none of which can be encoded
        now[0] = 50.0
        shown.end_part()
    assert capsys.readouterr().err.endswith("score: 100% of 100 samples, 1.6 a second, 0 s left\n")
