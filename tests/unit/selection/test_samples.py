"""Rows become samples: every row in one part, encoded or with a reason by name, whatever else is in its part."""

import json
from collections import Counter
from pathlib import Path

import pytest

from megatron_mixcpt.data.chat.encoding import ChatEncoder
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.errors import DataError
from megatron_mixcpt.selection import samples, score_tool
from megatron_mixcpt.selection.parts import PartEncoder
from megatron_mixcpt.selection.settings import ScoreSettings
from tests.unit.data.chat.chats import encoder, tokenizer_of
from tests.unit.data.chat.qwen_templates import QWEN3

GOOD = {"prompt": "Hi", "response": "yes"}
CALL = {"function": {"name": "f", "arguments": '{"x": 1}'}}
SFT = [
    GOOD,
    {"prompt": "Hi", "response": " "},
    {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "h"},
        ]
    },
    {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"prompt": "Hi", "response": "word " * 80},
]
DPO = [
    {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    {"prompt": "Hi", "chosen": "same", "rejected": "same"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    (folder / "sft.jsonl").write_text("\n\n".join(map(json.dumps, SFT)) + "\n")
    (folder / "dpo.jsonl").write_text("\n".join(map(json.dumps, DPO)))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    return tokenizer_of("gpt2", tmp_path_factory.mktemp("tokenizer"))


def settings(world: Path, *more: str) -> ScoreSettings:
    files = ["--sft", str(world / "sft.jsonl"), "--dpo", str(world / "dpo.jsonl"), "--output", "x"]
    return score_tool.settings_of(score_tool.build_parser().parse_args(["--hf-model", "x", *files, *more]))


def parts_of(world: Path, chat: ChatEncoder, *more: str) -> PartEncoder:
    made = settings(world, *more)
    sources = [source for kind, chosen in made.kinds.items() for source in find_sources(kind, list(chosen.paths))]
    assert samples.count_rows(sources) == len(SFT) + len(DPO)
    return PartEncoder(made, sources, chat)


def test_every_row_is_a_sample_or_has_a_reason(world, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(samples, "PART_SAMPLES", 3)
    parts = parts_of(world, encoder(tokenizer, "chatml", seq_length=64), "--on-bad-record", "skip")
    found = {number: part for number, part in parts.parts(set())}
    assert parts.sizes == [3, 3, 1] and samples.rows_of_parts([0, 2], 7) == 4
    flat = [sample for number in sorted(found) for sample in found[number]]
    assert [sample.line for sample in flat] == [1, 3, 5, 7, 9, 1, 2]
    reasons = Counter(sample.refusal.reason if sample.refusal else "scored" for sample in flat)
    equal = reasons.pop(flat[-1].refusal.reason)
    assert equal == 1 and "empty" in reasons
    assert reasons == {"scored": 3, "empty": 1, "tool_calls_not_written": 1, "too_long": 1}
    assert flat[2].encoded.notes == ("reasoning_not_written",)
    again = parts_of(world, encoder(tokenizer, QWEN3, seq_length=64), "--on-bad-record", "skip")
    (number, part), *_ = again.parts({1, 2})
    assert number == 0 and part[2].encoded.notes == ()


def test_bad_records_are_an_error_unless_asked_otherwise(world, tokenizer) -> None:
    chat = encoder(tokenizer, "chatml", seq_length=64)
    with pytest.raises(DataError, match=r"sft.jsonl:3: .*--on-bad-record skip"):
        list(parts_of(world, chat).parts(set()))
    with pytest.raises(DataError, match="--sft: 1 of 5 records are bad .* more than --max-rejects 10.00%"):
        list(parts_of(world, chat, "--on-bad-record", "skip", "--max-rejects", "10%").parts(set()))


def test_half_of_a_surrogate_pair_is_a_reason_and_what_reading_did_is_counted(tokenizer, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "response": "\ud800"},
        {"messages": [], "prompt": "Hi"},
        {"prompt": "Hi", "response": "a</s>"},
    ]
    (tmp_path / "sft.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = score_tool.build_parser().parse_args(
        ["--hf-model", "x", "--sft", str(tmp_path / "sft.jsonl"), "--output", "x", "--on-bad-record", "skip"]
    )
    sources = find_sources("sft", [str(tmp_path / "sft.jsonl")])
    parts = PartEncoder(score_tool.settings_of(made), sources, encoder(tokenizer, "chatml", seq_length=64))
    [(_, found)] = parts.parts(set())
    assert [sample.refusal and sample.refusal.reason for sample in found] == ["lone_surrogate", "bad_messages", None]
    assert list(parts.notes["sft"].values()) == [1]
