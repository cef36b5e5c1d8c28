"""Samples are encoded once, by any number of processes with the same bytes, and found again only where they fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.chat.templates import choose_template
from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.records import Conversation, Message
from megatron_mixcpt.data.tokens.tokenizer_files import load_tokenizer
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.jobs.agreement import Agreement
from megatron_mixcpt.training.alignment import sample_cache
from megatron_mixcpt.training.alignment.sample_cache import cached_samples
from megatron_mixcpt.training.alignment.sample_recipe import SampleRecipe
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

ALONE = Agreement(None)
NUM_SAMPLES = 40


def turns(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def recipe(tokenizer_folder: Path, tmp_path: Path) -> SampleRecipe:
    """Of a file with samples that are too long in lines 3 and 36, and of one with a bad record in line 2."""
    answers = {2: "jumps over " * 100, 35: "jumps over " * 100}
    rows = [turns(f"fox {number}", answers.get(number, "jumps")) for number in range(NUM_SAMPLES)]
    (tmp_path / "good.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    bad = {"messages": [{"role": "user", "content": "fox"}]}
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, [turns("a", "dog"), bad, turns("b", "dog")])))
    tokenizer = load_tokenizer(tokenizer_folder)
    return SampleRecipe(
        kind="sft",
        records=KindSettings(),
        reading=ReadingSettings(on_bad_record="skip"),
        sources=tuple(find_sources("sft", [str(tmp_path / "good.jsonl"), str(tmp_path / "odd.jsonl")])),
        tokenizer_digest="",
        encoder=ChatEncoder(tokenizer, choose_template(tokenizer, "zephyr"), 100),
    ).with_digests()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_processes_writes_the_same_bytes(
    recipe: SampleRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_cache, "_PART_BYTES", 500)  # many parts
    found = {}
    for workers in (1, 3):
        samples, folder = cached_samples(recipe, tmp_path / str(workers), workers, ALONE)
        assert folder == tmp_path / str(workers) / recipe.name
        found[workers] = contents(folder)
    assert found[1] == found[3]
    assert len(samples) == NUM_SAMPLES - 2 + 2
    rejects = [json.loads(line) for line in found[1]["rejects.jsonl"].splitlines()]
    assert [(Path(row["source"]).name, row["line"], row["reason"]) for row in rejects] == [
        ("good.jsonl", 3, "too_long"),
        ("good.jsonl", 36, "too_long"),
        ("odd.jsonl", 2, "bad_messages"),
    ]
    assert samples.summary["rejects"] == {"too_long": 2, "bad_messages": 1}
    # The samples are in the order of the input.
    expected = recipe.encoder.encode_conversations([_conversation("fox 39", "jumps"), _conversation("a", "dog")])
    for index, conversation in zip((NUM_SAMPLES - 3, NUM_SAMPLES - 2), expected, strict=True):
        ((tokens, loss_mask),) = samples[index]
        assert tokens.tolist() == conversation.tokens.tolist()
        assert loss_mask.tolist() == conversation.loss_mask.tolist()


def _conversation(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def test_a_second_start_encodes_nothing(recipe: SampleRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = cached_samples(recipe, tmp_path / "cache", 1, ALONE)
    monkeypatch.setattr(sample_cache, "_encode", _fail)
    again, _ = cached_samples(recipe, tmp_path / "cache", 1, ALONE)
    assert len(again) == len(first)


def _fail(*_: object) -> None:
    raise AssertionError("encoded again")


def test_without_a_cache_nothing_stays(recipe: SampleRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_cache.tempfile, "mkdtemp", lambda prefix: str(_made(tmp_path / "temporary")))
    samples, folder = cached_samples(recipe, None, 1, ALONE)
    assert folder is None and not (tmp_path / "temporary").exists()
    assert len(samples[len(samples) - 1][0].tokens) > 3  # still mapped


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_failure_leaves_nothing_behind(recipe: SampleRecipe, tmp_path: Path) -> None:
    strict = replace(recipe, reading=ReadingSettings(on_bad_record="error"))
    with pytest.raises(DataError, match=r"odd\.jsonl:2: .*--on-bad-record skip"):
        cached_samples(strict, tmp_path / "cache", 1, ALONE)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (ReadingSettings(on_bad_record="error"), "1 records cannot be used, see .*rejects.jsonl"),
        (ReadingSettings(on_bad_record="skip", max_rejects=0.01), "1 of 43 records are bad .*--max-rejects 1.00%"),
    ],
)
def test_bad_records_are_refused_also_where_the_samples_are_found(
    recipe: SampleRecipe, tmp_path: Path, reading: ReadingSettings, message: str
) -> None:
    cached_samples(recipe, tmp_path / "cache", 1, ALONE)
    strict = replace(recipe, reading=reading)
    assert strict.name == recipe.name
    with pytest.raises(DataError, match=message):
        cached_samples(strict, tmp_path / "cache", 1, ALONE)


CHANGES: dict[str, Callable[[SampleRecipe], SampleRecipe]] = {
    "supervise": lambda recipe: replace(recipe, supervise="last"),
    "fields": lambda recipe: replace(recipe, records=KindSettings(names=FieldNames(content="value"))),
    "template rules": lambda recipe: replace(recipe, reading=ReadingSettings(keep_templates=())),
    "tokenizer": lambda recipe: replace(recipe, tokenizer_digest="other"),
    "files": lambda recipe: replace(recipe, sources=recipe.sources[:1]).with_digests(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_the_samples_is_in_their_name(
    recipe: SampleRecipe, change: Callable[[SampleRecipe], SampleRecipe]
) -> None:
    assert change(recipe).name != recipe.name


@pytest.mark.parametrize(("template", "length"), [("zephyr", 99), ("chatml", 100)])
def test_the_chat_template_and_the_length_are_in_their_name(
    recipe: SampleRecipe, tokenizer_folder: Path, template: str, length: int
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    encoder = ChatEncoder(tokenizer, choose_template(tokenizer, template), length)
    assert replace(recipe, encoder=encoder).name != recipe.name


def test_a_file_that_was_changed_in_its_middle_is_another(recipe: SampleRecipe) -> None:
    path = recipe.sources[0].path
    path.write_text(path.read_text().replace('"fox 20"', '"fox 99"'))
    assert recipe.with_digests().name != recipe.name
