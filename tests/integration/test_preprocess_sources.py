"""Named sources end to end: each is a dataset of its own, with the bytes that it would have alone."""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.data.mixture.manifest import MixtureManifest
from megatron_mixcpt.data.preprocessing.inputs import describe_plan
from megatron_mixcpt.data.preprocessing.tool import PlanSettings, build_parser, preprocess_settings
from megatron_mixcpt.errors import ConfigError, DataError
from tests.integration.test_preprocess_options import rejects_of, run, tokenizer_dir, write

__all__ = ["tokenizer_dir"]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """Documents of the law and of other things, of which they share one; two questions."""
    law = [{"text": f"The court finds in case {number}."} for number in range(30)]
    replay = [{"text": f"A fox, number {number}, runs."} for number in range(10)]
    return {
        "law": write(tmp_path / "law.jsonl", *law),
        "replay": write(tmp_path / "replay.jsonl", *replay, law[7]),
        "sft": write(tmp_path / "sft.jsonl", *({"prompt": f"q{number}", "response": "a"} for number in range(2))),
    }


def flags(inputs: dict[str, Path]) -> list[str]:
    return ["--cpt", f"law={inputs['law']}", "--cpt", f"replay={inputs['replay']}", "--sft", str(inputs["sft"])]


def test_a_source_is_a_dataset_of_its_own(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    """Its tokens are those of its files alone, but for what an earlier source of the kind has already."""
    manifest = run(tokenizer_dir, tmp_path / "both", *flags(inputs), workers=2)
    assert list(manifest.datasets) == ["cpt.law", "cpt.replay", "sft"]
    assert {name: summary.samples for name, summary in manifest.datasets.items()} == {
        "cpt.law": 30,
        "cpt.replay": 10,
        "sft": 2,
    }
    alone = run(tokenizer_dir, tmp_path / "law", "--cpt", inputs["law"])
    assert manifest.datasets["cpt.law"].bin_sha256 == alone.datasets["cpt"].bin_sha256
    assert (tmp_path / "both/cpt.law.bin").read_bytes() == (tmp_path / "law/cpt.bin").read_bytes()
    assert (tmp_path / "both/cpt.law.idx").read_bytes() == (tmp_path / "law/cpt.idx").read_bytes()
    [reject] = rejects_of(tmp_path / "both")
    assert (reject["source"], reject["line"], reject["reason"]) == (str(inputs["replay"]), 11, "duplicate")
    assert manifest.settings["--cpt"] == [f"law={inputs['law']}", f"replay={inputs['replay']}"]
    assert [source.path for source in manifest.datasets["cpt.replay"].sources] == [str(inputs["replay"])]
    content = json.loads((tmp_path / "both/mixture.json").read_text())
    assert list(content["kinds"]) == ["cpt.law", "cpt.replay", "sft"]
    [line] = [line for line in manifest.summary().splitlines() if line.startswith("cpt.replay")]
    assert line.split()[1:4] == ["11", "1", "10"]


def test_limits_count_for_each_source(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    manifest = run(tokenizer_dir, tmp_path / "out", *flags(inputs), "--cpt-max-tokens", 100)
    assert all(60 < manifest.datasets[name].tokens <= 100 for name in ("cpt.law", "cpt.replay"))


def test_the_same_run_again_and_other_names(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    run(tokenizer_dir, tmp_path / "out", *flags(inputs))
    run(tokenizer_dir, tmp_path / "out", *flags(inputs))
    other = [flag.replace("law=", "court=") for flag in flags(inputs)]
    with pytest.raises(ConfigError, match="was made with --cpt law=.* replay=.*, now it is court="):
        run(tokenizer_dir, tmp_path / "out", *other)


def test_a_file_belongs_to_one_source(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--cpt b=.*law.jsonl: a has that file, too; give it to one"):
        run(tokenizer_dir, tmp_path / "out", "--cpt", f"a={inputs['law']}", f"b={inputs['law']}")


def test_an_empty_source_is_named(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"--cpt b=\.\.\.: no sample in 1 file"):
        run(tokenizer_dir, tmp_path / "out", "--cpt", f"a={inputs['law']}", f"b={empty}")


def test_plans_name_the_sources(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = [*flags(inputs), "--tokenizer", str(tokenizer_dir), "--output", str(output)]
    text = describe_plan(preprocess_settings(build_parser().parse_args(arguments)), output)
    assert f"cpt.law: 1 file(s), 0.0 MB -> {output / 'cpt.law'}.bin and .idx" in text
    run(tokenizer_dir, output, *flags(inputs))
    plan = PlanSettings(plan=output, seq_length=8, global_batch_size=2, mixture_weights="cpt.law=1,cpt.replay=3")
    shares = {line.split()[0]: line.split()[-1] for line in plan.text().splitlines() if "%" in line}
    assert shares.keys() == {"cpt.law", "cpt.replay"}
    assert 74 < float(shares["cpt.replay"].rstrip("%")) < 76


def test_a_manifest_of_another_name_is_damaged(tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path) -> None:
    run(tokenizer_dir, tmp_path / "out", *flags(inputs))
    path = tmp_path / "out/mixture.json"
    path.write_text(path.read_text().replace('"cpt.law": {', '"cpt./../law": {'))
    with pytest.raises(DataError, match=r"a dataset cannot be called 'cpt./../law'"):
        MixtureManifest.load(tmp_path / "out")


def test_files_held_out_by_their_names_are_named_in_the_plan(
    tokenizer_dir: Path, inputs: dict[str, Path], tmp_path: Path, capsys
) -> None:
    inputs["replay"].rename(tmp_path / "replay-test.jsonl")
    line = (
        f"cpt: 1 file(s) left out, held out by their names: {tmp_path}/replay-test.jsonl; name a file itself, or give"
    )
    flags = ["--cpt", str(tmp_path), "--cpt-filter", "text != null"]
    arguments = [*flags, "--tokenizer", str(tokenizer_dir), "--output", str(tmp_path / "out")]
    assert line in describe_plan(preprocess_settings(build_parser().parse_args(arguments)), tmp_path / "out")
    assert run(tokenizer_dir, tmp_path / "out", *flags).datasets["cpt"].samples == 30
    assert line in capsys.readouterr().out
    assert run(tokenizer_dir, tmp_path / "all", *flags, "--include-held-out-splits").datasets["cpt"].samples == 40
