"""The sample data in examples/data: well-formed, varied, without repeats, and held-out text that is not in training."""

import json
from collections import Counter
from pathlib import Path

import pytest

SFT_FORMS = {("messages",), ("prompt", "response"), ("instruction", "input", "output")}


@pytest.fixture(scope="module")
def data(repository: Path) -> dict[str, list[dict]]:
    """The records of every file, by the file's stem."""
    files = sorted((repository / "examples" / "data").glob("*.jsonl"))
    return {path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in files}


def texts_of(record: dict) -> list[str]:
    """Every text in a record, in order."""
    return [message["content"] for message in record["messages"]] if "messages" in record else list(record.values())


def query_and_response(record: dict) -> tuple[str, str]:
    """All but the last text of an instruction record, and the last."""
    *query, response = texts_of(record)
    return "\n".join(query), response


def ngrams(text: str, length: int = 8) -> set[tuple[str, ...]]:
    """Runs of ``length`` words."""
    words = text.lower().split()
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def test_files_and_sizes(data: dict[str, list[dict]]) -> None:
    assert {name: len(records) for name, records in data.items()} == {"sft": 60, "dpo": 40, "general_english": 9}


def test_instructions_have_the_documented_forms(data: dict[str, list[dict]]) -> None:
    forms = Counter(tuple(record) for record in data["sft"])
    assert set(forms) == SFT_FORMS and min(forms.values()) >= 5
    assert sum(len(record.get("messages", [])) > 2 for record in data["sft"]) == 8


def test_messages_alternate_and_end_with_an_answer(data: dict[str, list[dict]]) -> None:
    for record in (record for record in data["sft"] if "messages" in record):
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2), record
        assert all(set(message) == {"role", "content"} for message in record["messages"])


def test_preferences_have_two_different_answers(data: dict[str, list[dict]]) -> None:
    for record in data["dpo"]:
        assert list(record) == ["prompt", "chosen", "rejected"]
        assert record["chosen"] != record["rejected"]


def test_texts_are_clean(data: dict[str, list[dict]]) -> None:
    for record in (record for records in data.values() for record in records):
        for text in texts_of(record):
            assert text and text == text.strip(), f"empty or padded text in {record}"
            assert "<|" not in text and "```" not in text, f"control token or code in {record}"


def test_nothing_is_repeated(data: dict[str, list[dict]]) -> None:
    queries = [query_and_response(record)[0] for record in data["sft"]] + [record["prompt"] for record in data["dpo"]]
    answers = [query_and_response(record)[1] for record in data["sft"]]
    answers += [record[key] for record in data["dpo"] for key in ("chosen", "rejected")]
    assert len(set(queries)) == len(queries) == 100
    assert len(set(answers)) == len(answers) == 140


def test_lengths_are_natural(data: dict[str, list[dict]]) -> None:
    responses = [query_and_response(record)[1] for record in data["sft"]] + [record["chosen"] for record in data["dpo"]]
    words = sorted(len(response.split()) for response in responses)
    assert 4 <= words[0] and words[-1] <= 250
    assert sum(length >= 60 for length in words) >= len(words) // 2
    assert 1_500 <= sum(len(record["text"].split()) for record in data["general_english"]) <= 2_500


def test_heldout_english_shares_no_phrase_with_training(data: dict[str, list[dict]]) -> None:
    training = {
        ngram for name in ("sft", "dpo") for record in data[name] for text in texts_of(record) for ngram in ngrams(text)
    }
    for record in data["general_english"]:
        assert not ngrams(record["text"]) & training, record["source"]
