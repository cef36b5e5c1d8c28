"""A sample keeps its identity in every form that says the same."""

import hashlib
import json

import pytest

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import BadRecord
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


RICH = {
    "tools": [{"name": "f", "parameters": {"é": [1.0, None]}}],
    "messages": [
        {"role": "human", "content": "Q"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "f", "arguments": {"x": 1}}]},
        {"role": "tool", "content": "R", "name": "f", "tool_call_id": "c"},
        {"role": "assistant", "content": "no", "weight": 0},
        {"role": "user", "content": "Q2"},
        {"role": "assistant", "content": "A", "reasoning_content": "because"},
    ],
}


def test_everything_of_a_record_is_written_back_and_tells_it_from_others():
    record = to_record("sft", RICH, FieldNames())
    row = json.loads(json.dumps(to_row(record)))
    assert to_record("sft", row, FieldNames()) == record
    pair = {"prompt": "Q", "chosen": RICH["messages"][5:], "rejected": "B", "tools": RICH["tools"]}
    record = to_record("dpo", pair, FieldNames())
    assert to_record("dpo", to_row(record), FieldNames()) == record

    changes = {1: {"tool_calls": None}, 2: {"name": None}, 3: {"weight": 1}, 5: {"reasoning_content": ""}}
    rows = [RICH, RICH | {"tools": None}]
    for place, change in changes.items():
        messages = [dict(message) for message in RICH["messages"]]
        messages[place] |= change
        rows.append({**RICH, "messages": messages})
    assert len({sample_id(to_record("sft", row, FieldNames())) for row in rows}) == len(rows)


def test_ids_of_plain_samples_do_not_change():
    # SHA-256 of [[["user", "Q"], ["assistant", "A"]]], as files of scores that exist hold it.
    expected = hashlib.sha256(b'[[["user", "Q"], ["assistant", "A"]]]').hexdigest()[:32]
    assert sample_id(to_record("sft", ROWS["sft"], FieldNames())) == expected
