"""The optional steps of the preprocessing end to end: counts add up, and a run with a wrong encoder corrects itself."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.preprocessing.parts.encode import WhoWorks
from megatron_mixcpt.data.preprocessing.run import preprocess
from megatron_mixcpt.data.preprocessing.tool import build_parser, preprocess_settings
from megatron_mixcpt.data.reading import parts
from megatron_mixcpt.data.reading.sources import find_sources
from megatron_mixcpt.data.tokens import fast_encoder as fast_encoding
from megatron_mixcpt.errors import DataError
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def run(tokenizer_dir: Path, output: Path, *flags: object, workers: int = 1) -> MixtureManifest:
    arguments = [*map(str, flags), "--tokenizer", str(tokenizer_dir), "--output", str(output)]
    preprocess(preprocess_settings(build_parser().parse_args(arguments)), output, WhoWorks(workers))
    return MixtureManifest.load(output)


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rejects_of(folder: Path) -> list[dict]:
    with gzip.open(folder / "rejects.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_every_record_is_a_sample_or_a_reject(tokenizer_dir: Path, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(60)]
    records = [{"body": {"text": " ".join(words[start : start + 20])}, "score": start / 40} for start in range(40)]
    records += [{"body": {"text": "tiny"}, "score": 1}, records[39], {"body": {"text": 3}, "score": 1}, {"score": 1}]
    data = write(tmp_path / "a.jsonl", *records)
    exam = write(tmp_path / "exam.jsonl", {"question": " ".join(words[35:48])})
    flags = ["--cpt-text-field", "body.text", "--cpt-filter", "score >= 0.25", "--cpt-fraction", "80%"]
    flags += ["--cpt-max-tokens", 700, "--min-tokens", 10, "--decontaminate", exam, "--near-duplicates", "0.9"]
    manifest = run(tokenizer_dir, tmp_path / "out", "--cpt", data, *flags, "--on-bad-record", "skip")
    summary, rejects = manifest.datasets["cpt"], rejects_of(tmp_path / "out")
    assert summary.records == len(records) == summary.samples + len(rejects)
    assert summary.tokens <= 700
    lines = [reject["line"] for reject in rejects]
    assert len(set(lines)) == len(lines)
    counted = {reason: sum(reject["reason"] == reason for reject in rejects) for reason in summary.rejects}
    assert counted == summary.rejects == manifest.datasets["cpt"].sources[0].rejects
    assert summary.rejects["filtered"] == 10
    assert (summary.rejects["not_text"], summary.rejects["missing_field"]) == (1, 1)
    assert set(summary.rejects) >= {"not_drawn", "contaminated", "over_max_tokens", "filtered"}


def test_templates_are_counted(tokenizer_dir: Path, tmp_path: Path) -> None:
    records = [{"prompt": f"[INST] {number} [/INST]", "response": "r</s>"} for number in range(3)]
    data = write(tmp_path / "a.jsonl", *records, {"prompt": "plain", "response": "r"})
    manifest = run(tokenizer_dir, tmp_path / "out", "--sft", data)
    assert manifest.datasets["sft"].notes == {"template end-of-turn": 3, "template llama2": 3}
    kept = run(tokenizer_dir, tmp_path / "kept", "--sft", data, "--keep-templates")
    assert kept.datasets["sft"].notes == {} and kept.datasets["sft"].tokens > manifest.datasets["sft"].tokens


def test_wrong_fast_encoder_is_replaced_for_the_whole_run(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    data = write(tmp_path / "a.jsonl", *({"text": f"the fox {number}, the dog"} for number in range(3000)))
    monkeypatch.setattr(parts, "PART_BYTES", 30_000)
    expected = run(tokenizer_dir, tmp_path / "expected", "--cpt", data)
    real = fast_encoding.FastEncoder.encode

    def wrong(self, texts):
        ids, lengths = real(self, texts)
        return (ids + ("fox 1234," in "".join(texts)), lengths)

    monkeypatch.setattr(fast_encoding.FastEncoder, "encode", wrong)
    monkeypatch.setattr("megatron_mixcpt.data.preprocessing.parts.worker.COMPARED_SHARE", 1.0)
    for workers in (1, 2):
        output = tmp_path / f"corrected{workers}"
        manifest = run(tokenizer_dir, output, "--cpt", data, workers=workers)
        assert manifest.tokenizer.encoder.startswith("tokenizers ")
        assert "starting again without it" in capsys.readouterr().out
        assert manifest.datasets["cpt"].bin_sha256 == expected.datasets["cpt"].bin_sha256


def test_the_first_thousand_texts_are_compared_wherever_parts_end(
    tokenizer_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    data = write(tmp_path / "a.jsonl", *({"text": f"the fox {number}, the dog"} for number in range(1500)))
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)
    monkeypatch.setattr("megatron_mixcpt.data.preprocessing.parts.worker.COMPARED_SHARE", 0.0)
    for workers in (1, 2):
        manifest = run(tokenizer_dir, tmp_path / f"out{workers}", "--cpt", data, workers=workers)
        assert manifest.tokenizer.compared_texts == 1000


def test_long_documents_give_the_same_bytes(tokenizer_dir: Path, tmp_path: Path, monkeypatch) -> None:
    texts = ["the fox, é 你好🙂 <|im_end|> the dog\r\n" * 80, "theword" * 600, "short", " \n" * 900]
    data = write(tmp_path / "a.jsonl", *({"text": text, "more": [text]} for text in texts))
    (tmp_path / "b.txt").write_bytes(texts[0][::-1].encode())
    table = pa.table({"text": [text[:-1] for text in texts[:3]], "number": [1, 2, 3]})
    pq.write_table(table, tmp_path / "c.parquet")
    given = ["--cpt", data, tmp_path / "b.txt", tmp_path / "c.parquet", "--on-bad-record", "skip"]
    expected = run(tokenizer_dir, tmp_path / "expected", *given).datasets["cpt"]
    for name, value in (
        ("long_text.LONG_BYTES", 100),
        ("long_text.PLAIN_PIECE_BYTES", 64),
        ("reading.formats.json_lines.LONG_BYTES", 100),
        ("reading.formats.plain_text.LONG_BYTES", 100),
        ("reading.formats.table_rows.LONG_BYTES", 100),
        ("tokens.encoder.PIECE_CHARACTERS", 100),
        ("preprocessing.parts.worker.PIECE_CHARACTERS", 100),
        ("preprocessing.sample_maker.HASHED_AT_ONCE", 50),
    ):
        monkeypatch.setattr(f"megatron_mixcpt.data.{name}", value)
    found = run(tokenizer_dir, tmp_path / "found", *given).datasets["cpt"]
    assert found == expected and expected.samples == 6 and expected.rejects == {"empty": 1, "duplicate": 1}


def test_text_without_tokens_is_counted(tmp_path: Path) -> None:
    lacking = save_tiny_tokenizer(tmp_path / "lacking", all_bytes=False)
    data = write(tmp_path / "a.jsonl", {"text": "the fox"}, {"text": "bell \x07"})
    notes = run(lacking, tmp_path / "out", "--cpt", data).datasets["cpt"].notes
    assert notes == {"encoded in part by the Hugging Face tokenizer": 1}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.binary(max_size=40)
        | st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "x"]), inner, max_size=2)
            ),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
        max_size=12,
    )
)
def test_any_bytes_end_as_samples_or_rejects(tokenizer_dir: Path, tmp_path_factory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "a.jsonl").write_bytes(b"\n".join([b'{"text": "always one"}', *lines]))
    manifest = run(tokenizer_dir, folder / "out", "--cpt", folder / "a.jsonl", "--on-bad-record", "skip")
    summary = manifest.datasets["cpt"]
    rejects = rejects_of(folder / "out")
    assert summary.records == summary.samples + len(rejects) == summary.samples + sum(summary.rejects.values())
    content = (folder / "a.jsonl").read_bytes().split(b"\n")
    assert summary.records == sum(not line.isspace() and line != b"" for line in content)


def test_tokens_worked_out_by_hand(tmp_path: Path) -> None:
    ids = {
        "model": {
            "type": "WordLevel",
            "vocab": {"<unk>": 0, "the": 1, "fox": 2, "is": 3, "</s>": 4},
            "unk_token": "<unk>",
        }
    }
    folder = tmp_path / "words"
    folder.mkdir()
    added = [{"id": 4, "content": "</s>", "special": True, "normalized": False}]
    added[0] |= {"single_word": False, "lstrip": False, "rstrip": False}
    definition = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, **ids}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    (folder / "tokenizer.json").write_text(json.dumps(empty | definition))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    cpt = write(tmp_path / "cpt.jsonl", {"text": "the fox is the fox"}, {"text": "the </s> fox"})
    sft = write(tmp_path / "sft.jsonl", {"prompt": "is the fox", "response": "the fox is"})
    dpo = write(tmp_path / "dpo.jsonl", {"prompt": "the", "chosen": "fox", "rejected": "is"})
    run(folder, tmp_path / "out", "--cpt", cpt, "--sft", sft, "--dpo", dpo)
    tokens = {kind: np.fromfile(tmp_path / "out" / f"{kind}.bin", "<u2").tolist() for kind in ("cpt", "sft", "dpo")}
    assert tokens == {
        "cpt": [1, 2, 3, 1, 2, 4, 1, 0, 0, 0, 2, 4],
        "sft": [3, 1, 2, 1, 2, 3, 4],
        "dpo": [1, 2, 4],
    }


def test_every_format_in_many_parts_gives_the_same_tokens(tokenizer_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 2_000)
    texts = [f"document {number} of the fox" if number != 321 else "" for number in range(500)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"other": texts, "text": texts}), tmp_path / "c.parquet", row_group_size=33)
    digests = set()
    for path in sorted(tmp_path.glob("?.*")):
        assert len(parts.plan_parts(find_sources("cpt", [str(path)]))) > (1 if path.suffix != ".gz" else 0)
        output = tmp_path / path.name.partition(".")[0]
        manifest = run(tokenizer_dir, output, "--cpt", path, "--on-bad-record", "skip", workers=2)
        digests.add(manifest.datasets["cpt"].bin_sha256)
        assert [(reject["line"], reject["reason"]) for reject in rejects_of(output)] == [(322, "empty")]
        with pytest.raises(DataError, match=f"{path.name}:322: the text is empty"):
            run(tokenizer_dir, tmp_path / "stopped" / output.name, "--cpt", path)
    assert len(digests) == 1
