"""A sample keeps its identity in every form that says the same."""

import pytest

from megatron_mixcpt.data.records import BadRecord, FieldNames, to_record
from megatron_mixcpt.data.sample_id import sample_id, to_row

ROWS = {
    "sft": {"prompt": "Q", "response": "A"},
    "dpo": {"prompt": "Q", "chosen": "A", "rejected": "B"},
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_read_back_is_the_same_sample(kind):
    record = to_record(kind, ROWS[kind], FieldNames())
    again = to_record(kind, to_row(record), FieldNames())
    assert again == record and sample_id(again) == sample_id(record) and len(sample_id(record)) == 32


def test_other_forms_are_the_same_sample_and_other_texts_are_not():
    ids = [
        sample_id(to_record("sft", row, FieldNames()))
        for row in (
            ROWS["sft"] | {"source": "elsewhere"},
            {"instruction": "Q", "output": "A"},
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            {"prompt": "Q", "response": "A "},
        )
    ]
    assert ids[0] == ids[1] == ids[2] != ids[3]


def test_text_that_no_tokenizer_takes_is_refused():
    with pytest.raises(BadRecord, match="surrogate"):
        sample_id(to_record("sft", ROWS["sft"] | {"response": "\ud800"}, FieldNames()))
