"""Samples in files are those that were written, and rows of them hold each token in its place."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_mixcpt.data.datasets.encoded_samples import Document, EncodedPart, EncodedSamples, Sample, SampleWriter
from megatron_mixcpt.data.datasets.packed_rows import PackedMicrobatches
from megatron_mixcpt.data.datasets.packing import BatchOrder, RowShape
from megatron_mixcpt.data.datasets.row_plan import RowPlan

PAD = 99


def document(*tokens: int, supervised: int) -> Document:
    """The last ``supervised`` tokens are to be predicted."""
    return Document(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(tokens) - supervised)


SAMPLES: list[tuple[str, Sample]] = [
    (f"{number:08x}" + "0" * 24, sample)
    for number, sample in (
        (1, (document(1, 2, 3, supervised=1), document(1, 2, 4, 5, supervised=2))),
        (2**31, (document(6, 7, supervised=1), document(6, 8, supervised=1))),
        (2**32 - 1, (document(9, 10, 11, supervised=1), document(9, 12, supervised=1))),
    )
]


@pytest.fixture
def samples(tmp_path: Path) -> EncodedSamples:
    """Three pairs, written in two parts, the second with a reject."""
    with SampleWriter(tmp_path) as writer:
        writer.add(EncodedPart.of(SAMPLES[:2], [], Counter(note=1)))
        reject = {"source": "a.jsonl", "line": 4, "reason": "too_long", "detail": "long"}
        writer.add(EncodedPart.of(SAMPLES[2:], [reject], Counter(note=2)))
        writer.add(EncodedPart.of([], [], Counter()))
        writer.finish(2, {"kind": "dpo"})
    return EncodedSamples(tmp_path)


def test_samples_are_read_as_they_were_written(samples: EncodedSamples) -> None:
    assert len(samples) == 3
    for number, (name, sample) in enumerate(SAMPLES):
        assert samples.id(number) == name
        for found, expected in zip(samples[number], sample, strict=True):
            np.testing.assert_array_equal(found.tokens, expected.tokens)
            np.testing.assert_array_equal(found.loss_mask, expected.loss_mask)
    assert samples.document_positions(np.array([2, 0])).tolist() == [[2, 1], [2, 3]]
    assert samples.summary["rejects"] == {"too_long": 1}
    assert samples.summary["notes"] == {"note": 3}
    assert '"line": 4' in (samples.folder / "rejects.jsonl").read_text()


def test_held_out_is_what_the_beginning_of_the_id_says(samples: EncodedSamples) -> None:
    """Chosen by hand: ids at 0, at the half, and at the end of the range. A larger share holds a smaller one's."""
    assert samples.held_out(0.0).tolist() == [False, False, False]
    assert samples.held_out(0.1).tolist() == [True, False, False]
    assert samples.held_out(0.51).tolist() == [True, True, False]


def test_nothing_is_held_of_no_samples(tmp_path: Path) -> None:
    with SampleWriter(tmp_path) as writer:
        writer.finish(1, {})
    assert len(EncodedSamples(tmp_path)) == 0


def test_a_row_holds_each_token_in_its_place(samples: EncodedSamples) -> None:
    """Worked out by hand: both ends of sample 0 (5 positions), those of 1 (2) and of 2 (3) in one row of 12."""
    order = BatchOrder(3, global_batch_size=3, epochs=1, seed=0)
    plan = RowPlan(samples, order, RowShape(row_length=12, length_step=1))
    assert (plan.batch(0).num_positions, plan.batch(0).num_positions_squared) == (10, 4 + 9 + 1 + 1 + 4 + 1)
    microbatches = PackedMicrobatches(samples, plan, 0, pad_id=PAD)
    assert list(microbatches.keys()) == [(0, 0)]
    item = microbatches[0, 0]
    assert item["sample"].tolist() == [[0, 0, 2, 2, 1, 1]]  # the longest first
    assert item["tokens"].tolist() == [[1, 2, 1, 2, 4, 9, 10, 9, 6, 6]]
    assert item["labels"].tolist() == [[2, 3, 2, 4, 5, 10, 11, 12, 7, 8]]
    assert item["loss_mask"].tolist() == [[0, 1, 0, 1, 1, 0, 1, 1, 1, 1]]
    assert item["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 0, 0, 0]]
    assert item["document"].tolist() == [[6, 0, 6, 1, 1, 6, 2, 3, 4, 5]]
    assert item["cu_seqlens"].tolist() == [[0, 2, 5, 7, 8, 9, 10, 10]]
    assert item["sample_index"].tolist() == [0, 2, 1]


def test_rows_of_a_microbatch_are_filled_up(samples: EncodedSamples) -> None:
    """Two rows of a microbatch, the second shorter: padding is a document of its own that counts nowhere."""
    order = BatchOrder(np.array([0, 1]), global_batch_size=2, epochs=1, seed=0)
    plan = RowPlan(samples, order, RowShape(row_length=6, length_step=4, micro_batch_size=2))
    item = PackedMicrobatches(samples, plan, 0, pad_id=PAD)[0, 0]
    assert item["tokens"].tolist() == [[1, 2, 1, 2, 4, PAD], [6, 6, PAD, PAD, PAD, PAD]]
    assert item["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]
    assert item["loss_mask"].tolist() == [[0, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert item["document"].tolist() == [[2, 0, 2, 1, 1, 2], [0, 1, 2, 2, 2, 2]]
    assert item["cu_seqlens"].tolist() == [[0, 2, 5, 6], [0, 1, 2, 6]]
    assert item["max_seqlen"].tolist() == [3, 4]


def test_a_rank_without_a_sample_has_an_empty_row(samples: EncodedSamples) -> None:
    order = BatchOrder(np.array([1]), global_batch_size=2, epochs=1, seed=0)
    plan = RowPlan(samples, order, RowShape(row_length=6, length_step=4, data_parallel_size=2))
    item = PackedMicrobatches(samples, plan, 1, pad_id=PAD)[0, 0]
    assert item["tokens"].tolist() == [[PAD] * 4]
    assert not item["loss_mask"].any()
    assert item["sample_index"].tolist() == []
    assert item["sample"].tolist() == [[-1, -1]]
