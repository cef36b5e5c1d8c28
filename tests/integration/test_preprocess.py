"""tools/preprocess_mixture.py as a user runs it: what it writes, what it refuses, and what it says."""

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.jobs.digests import file_digest
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer
from tests.unit.data.tokenizer_classes import save_model_tokenizer
from tools import preprocess_mixture

CPT = [{"text": f"Document {number}: a fox é, def f(x): return x\n"} for number in range(40)]
SFT = [
    {"prompt": "What is a fox?", "response": "An animal."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello <|im_end|> there"}]},
    {"instruction": "Add", "input": "1, 2", "output": "3"},
]
DPO = [{"prompt": "Which?", "chosen": "This one.", "rejected": "That one."}]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """One small JSONL file per kind."""
    paths = {kind: tmp_path / f"{kind}.jsonl" for kind in ("cpt", "sft", "dpo")}
    for (_, path), records in zip(paths.items(), (CPT, SFT, DPO), strict=True):
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


@dataclass
class Finished:
    """How a run of the tool ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_tool(tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the tool in the test's folder, in this process, because a separate process costs a second."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, output: Path | str = "mixture") -> Finished:
        command = ["preprocess_mixture.py", *map(str, arguments), "--output", str(output)]
        if "--tokenizer" not in command:
            command += ["--tokenizer", str(tokenizer_dir)]
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        try:
            preprocess_mixture.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return Finished(code, *capsys.readouterr())

    return run


def run_all(run_tool, inputs: dict[str, Path], *arguments: object, output: str = "mixture") -> Path:
    flags = [item for kind, path in inputs.items() for item in (f"--{kind}", path)]
    result = run_tool(*flags, *arguments, output=output)
    assert result.returncode == 0, result.stderr
    return inputs["cpt"].parent / output


def read_tokens(prefix: Path) -> list[list[int]]:
    """Token ids of every sample, read by the engine."""
    dataset = IndexedDataset(str(prefix))
    return [dataset[index].tolist() for index in range(len(dataset))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_what_the_engine_reads(run_tool, inputs: dict[str, Path], tokenizer_dir: Path) -> None:
    folder = run_all(run_tool, inputs)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    expected_texts = {
        "cpt": [record["text"] for record in CPT],
        "sft": ["What is a fox?\nAn animal.", "Hi\nHello <|im_end|> there", "Add\n\n1, 2\n3"],
        "dpo": ["Which?\nThis one."],
    }
    eos = tokenizer.token_to_id("<|endoftext|>")
    for kind, texts in expected_texts.items():
        expected = [[*tokenizer.encode(text, add_special_tokens=False).ids, eos] for text in texts]
        assert read_tokens(folder / kind) == expected
    assert sorted(contents(folder)) == sorted(
        [f"{kind}.{suffix}" for kind in inputs for suffix in ("bin", "idx")] + ["mixture.json", "rejects.jsonl.gz"]
    )


@pytest.mark.parametrize(("flags", "has_bos"), [([], True), (["--no-bos"], False)])
def test_samples_of_a_model_with_bos(run_tool, inputs: dict[str, Path], tmp_path: Path, flags: list, has_bos) -> None:
    """Each sample is what transformers writes for its text alone, BOS first, and the end of sequence."""
    model = save_model_tokenizer(tmp_path / "llama3", "llama3")
    long = tmp_path / "long.jsonl"
    texts = [*(record["text"] for record in CPT), "the fox and the bird over " * 6000]  # is written in pieces
    long.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    result = run_tool("--cpt", long, "--sft", inputs["sft"], "--tokenizer", model, "--min-tokens", 2, *flags)
    assert result.returncode == 0, result.stderr
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [tokenizer(text, split_special_tokens=True).input_ids[not has_bos :] for text in texts]
    assert read_tokens(tmp_path / "mixture" / "cpt") == [[*ids, tokenizer.eos_token_id] for ids in expected]
    starts = {ids[0] == tokenizer.bos_token_id for ids in read_tokens(tmp_path / "mixture" / "sft")}
    assert starts == {has_bos}
    assert MixtureManifest.load(tmp_path / "mixture").tokenizer.bos_id == (tokenizer.bos_token_id if has_bos else None)
    assert ("begin with token" in result.stdout) is has_bos


def test_manifest_describes_it(run_tool, inputs: dict[str, Path], tokenizer_dir: Path) -> None:
    folder = run_all(run_tool, inputs)
    manifest = MixtureManifest.load(folder)
    manifest.check_tokenizer(tokenizer_dir)
    assert manifest.tokenizer.digest == tokenizer_digest(tokenizer_dir)
    assert (manifest.tokenizer.eos_id, manifest.tokenizer.vocab_size) == (0, 400)
    assert manifest.tokenizer.compared_texts == 44
    assert {kind: summary.samples for kind, summary in manifest.datasets.items()} == {"cpt": 40, "sft": 3, "dpo": 1}
    assert manifest.datasets["sft"].special_strings == 1
    [source] = manifest.datasets["cpt"].sources
    assert (source.sha256, source.size) == (file_digest(inputs["cpt"]), inputs["cpt"].stat().st_size)
    assert source.tokens == manifest.datasets["cpt"].tokens
    assert manifest.datasets["cpt"].bin_sha256 == file_digest(folder / "cpt.bin")
    assert manifest.datasets["cpt"].idx_sha256 == file_digest(folder / "cpt.idx")


def test_special_tokens_are_text_unless_allowed(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = run_all(run_tool, inputs, "--allow-special-tokens", output="allowed")
    im_end = 2
    assert im_end in read_tokens(folder / "sft")[1]
    assert im_end not in read_tokens(run_all(run_tool, inputs) / "sft")[1]


def test_bad_record_stops_and_leaves_nothing(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    with open(inputs["cpt"], "a") as file:
        file.write('{"title": "no text"}\n')
    result = run_tool("--cpt", inputs["cpt"])
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f'error: {inputs["cpt"]}:41: expected "text"; found title; fix it')
    assert not [path for path in (tmp_path / "mixture").iterdir() if not path.name.startswith(".")]


def test_bad_records_skipped_are_listed(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    bad = [
        b'{"text": \n',
        b'{"text": "\xff"}\n',
        b"\n",
        b'{"text": " \\n"}\n',
        b'{"text": "\\ud800"}\n',
        b'{"text": 1}',
    ]
    inputs["cpt"].write_bytes(bad[0] + inputs["cpt"].read_bytes() + b"".join(bad[1:]))
    result = run_tool("--cpt", inputs["cpt"], "--on-bad-record", "skip")
    assert result.returncode == 0, result.stderr
    with gzip.open(tmp_path / "mixture" / "rejects.jsonl.gz", "rt") as file:
        rejects = [json.loads(line) for line in file]
    expected = {1: "invalid_json", 42: "not_utf8", 44: "empty", 45: "lone_surrogate", 46: "not_text"}
    assert {reject["line"]: reject["reason"] for reject in rejects} == expected
    summary = MixtureManifest.load(tmp_path / "mixture").datasets["cpt"]
    assert (summary.records, summary.samples, sum(summary.rejects.values())) == (45, 40, 5)
    over = run_tool("--cpt", inputs["cpt"], "--on-bad-record", "skip", "--max-rejects", "10%", output="limited")
    assert over.returncode == 1
    assert "5 of 45 records are bad" in over.stderr and "--max-rejects 10.00%" in over.stderr
    assert not (tmp_path / "limited" / "mixture.json").exists()


def test_duplicates_are_dropped_across_files(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    copied = [{"text": "new"}, {"text": " " + CPT[3]["text"].replace("\n", "\r\n")}, {"text": "new"}]
    (tmp_path / "more" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in copied))
    result = run_tool("--cpt", inputs["cpt"], tmp_path / "more")
    assert result.returncode == 0, result.stderr
    summary = MixtureManifest.load(tmp_path / "mixture").datasets["cpt"]
    assert [source.samples for source in summary.sources] == [40, 1]
    assert summary.rejects == {"duplicate": 2}
    kept = run_tool("--cpt", inputs["cpt"], tmp_path / "more", "--keep-duplicates", output="all")
    assert kept.returncode == 0 and MixtureManifest.load(tmp_path / "all").datasets["cpt"].samples == 43


def test_second_run_does_nothing_and_another_is_refused(run_tool, inputs: dict[str, Path]) -> None:
    before = contents(run_all(run_tool, inputs))
    assert contents(run_all(run_tool, inputs)) == before
    other = run_tool("--cpt", inputs["cpt"], "--keep-duplicates")
    assert other.returncode == 1
    assert "--keep-duplicates False, now it is True" in other.stderr or "--sft" in other.stderr
    with open(inputs["cpt"], "a") as file:
        file.write('{"text": "one more"}\n')
    flags = [item for kind, path in inputs.items() for item in (f"--{kind}", path)]
    changed = run_tool(*flags)
    assert changed.returncode == 1 and f"{inputs['cpt']} has changed since" in changed.stderr


def test_dry_run_writes_nothing(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run_tool("--cpt", inputs["cpt"], "--dry-run")
    assert result.returncode == 0 and str(inputs["cpt"]) in result.stdout
    assert not (tmp_path / "mixture").exists()


def test_tokens_beyond_16_bits(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    large = save_tiny_tokenizer(tmp_path / "large", num_unused=70_000)
    result = run_tool("--cpt", inputs["cpt"], "--tokenizer", large)
    assert result.returncode == 0, result.stderr
    assert IndexedDataset(str(tmp_path / "mixture" / "cpt")).index.dtype == np.int32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give at least one of --cpt, --sft and --dpo"),
        (["--cpt", "missing.jsonl"], "--cpt missing.jsonl: no such file or folder"),
        (["--cpt", "cpt.jsonl", "--tokenizer", "nowhere"], "--tokenizer nowhere: no such folder"),
        (["--cpt", "cpt.jsonl", "--tokenizer", "."], ".: no tokenizer there"),
        (["--cpt", "cpt.jsonl", "--eos-token", "<none>"], "--eos-token <none>: "),
        (["--cpt", "cpt.jsonl", "--workers", "0"], "--workers 0: must be at least 1"),
        (["--cpt", "cpt.jsonl", "--max-rejects", "many"], "--max-rejects many: expected a share"),
        (["--cpt", "empty.jsonl"], "--cpt: no sample in 1 file(s): no record at all"),
    ],
)
def test_wrong_arguments_end_in_one_line(run_tool, inputs, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    result = run_tool(*arguments)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_output_that_cannot_be_written(run_tool, inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run_tool("--cpt", inputs["cpt"], output="file")
    assert result.returncode == 1
    assert "--output file: cannot be written" in result.stderr and len(result.stderr.splitlines()) == 1


def test_start_needs_neither_torch_nor_the_engine(repository: Path) -> None:
    code = (
        "import sys, tools.preprocess_mixture; print(sorted({'torch', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_plan_and_lists_are_printed(run_tool, inputs: dict[str, Path]) -> None:
    folder = run_all(run_tool, inputs)
    flags = ["--plan", folder, "--seq-length", 64, "--global-batch-size", 4]
    result = run_tool(*flags)
    assert result.returncode == 0, result.stderr
    assert "iterations of 4" in result.stdout and "dpo   less than one sequence of 64 tokens: skipped" in result.stdout
    weighted = run_tool(*flags, "--epochs", "cpt=2", "--mixture-weights", "cpt=1,sft=1")
    assert weighted.returncode == 0 and "50.0%" in weighted.stdout
    assert "alpaca" in run_tool("--list-templates").stdout
    assert "starcoder" in run_tool("--list-presets").stdout
    assert "no finished mixture" in run_tool("--plan", "nowhere").stderr
