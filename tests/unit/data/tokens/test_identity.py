"""What counts for the identity of a tokenizer, and what does not."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.tokens.identity import definition_digest
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


@pytest.fixture
def definition(tmp_path: Path) -> dict:
    return json.loads((save_tiny_tokenizer(tmp_path) / "tokenizer.json").read_text())


def digest(definition: dict, **changed: object) -> str:
    return definition_digest(json.dumps(definition | changed))


def test_what_changes_no_ids_does_not_count(definition: dict) -> None:
    same = {"decoder": None, "post_processor": {"type": "ByteLevel"}, "truncation": {"max_length": 5}, "version": "9"}
    model = definition["model"] | {"continuing_subword_prefix": "", "option of a later release": False}
    pre_tokenizer = definition["pre_tokenizer"] | {"trim_offsets": False}
    added_tokens = definition["added_tokens"][::-1]
    assert digest(definition) == digest(
        definition, **same, model=model, pre_tokenizer=pre_tokenizer, added_tokens=added_tokens
    )


def test_what_changes_ids_counts(definition: dict) -> None:
    model, added = definition["model"], definition["added_tokens"]
    swapped = model["vocab"] | {"a": model["vocab"]["b"], "b": model["vocab"]["a"]}
    digests = {
        digest(definition),
        digest(definition, normalizer={"type": "NFC"}),
        digest(definition, pre_tokenizer=definition["pre_tokenizer"] | {"add_prefix_space": True}),
        digest(definition, pre_tokenizer=definition["pre_tokenizer"] | {"use_regex": False}),
        digest(definition, model=model | {"vocab": swapped}),
        digest(definition, model=model | {"merges": model["merges"][:-1]}),
        digest(definition, model=model | {"byte_fallback": True}),
        digest(definition, added_tokens=added[:-1]),
        digest(definition, added_tokens=[added[0] | {"special": False}, *added[1:]]),
        digest(definition, added_tokens=[added[0] | {"id": 9}, *added[1:]]),
    }
    assert len(digests) == 10
