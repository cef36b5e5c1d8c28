"""Which ``--validation NAME=PATH`` is taken, and that the same flag given twice names two sets."""

from pathlib import Path

import pytest

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.data.mixture.plan import plan_mixture
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.testing import run_distributed
from megatron_mixcpt.training.pretraining.validation_sets import (
    _preprocessed,
    held_out_datasets,
    open_named_sets,
    parse_named_sets,
    validation_names,
)
from tests.distributed.tiny_run import make_mixture
from tests.unit.data.mixture.test_plan import write_mixture
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "general.txt").write_text("What must not be forgotten. " * 9, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "tokenizer").mkdir()
    save_tiny_tokenizer(tmp_path / "tokenizer")
    make_mixture(tmp_path / "mixture", tmp_path / "tokenizer")
    return tmp_path


def test_text_and_kinds_of_a_mixture_are_taken(folder: Path) -> None:
    given = [f"general={folder}/general.txt", f"sft.old={folder}/mixture/sft", f"idx={folder}/mixture/dpo.idx"]
    assert list(parse_named_sets(given)) == ["general", "sft.old", "idx"]


@pytest.mark.parametrize("path", ["cpt.law", "cpt.law.idx", "cpt.law.bin"])
def test_a_named_source_is_taken(tmp_path: Path, path: str) -> None:
    write_mixture(tmp_path, **{"cpt.law": [40], "cpt.bin": [30], "sft": [20]})
    assert _preprocessed(tmp_path / path) == (tmp_path, "cpt.law")
    assert _preprocessed(tmp_path / "cpt.bin") == (tmp_path, "cpt.bin")  # a source that is called bin
    with pytest.raises(ConfigError, match=r"give one of them, .*cpt.law or .*cpt.bin or .*sft"):
        _preprocessed(tmp_path)


def test_held_out_samples_are_a_set_for_each_source(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, **{"cpt.law": [20] * 20, "cpt.replay": [20] * 20, "sft": [9]})
    plan = plan_mixture(manifest, sequence_length=16, split="50,50,0", weights={"cpt": 1})
    held_out = held_out_datasets(manifest, plan)
    assert held_out == ["cpt.law", "cpt.replay"]
    assert validation_names(held_out, ["law"]) == ["cpt.law", "cpt.replay", "law"]
    with pytest.raises(ConfigError, match="--validation cpt.law=...: cpt.law is what --split holds out"):
        validation_names(held_out, ["cpt.law"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["general.txt"], "expected NAME=PATH"),
        (["=general.txt"], "expected NAME=PATH"),
        (["a/b=general.txt"], "name it with letters"),
        (["general=nowhere.txt"], "no such file or folder"),
        (["general=mixture"], r"give one of them, .*mixture/cpt or .*mixture/sft or"),
        (["a=general.txt", "a=mixture/sft"], "a is already general.txt"),
    ],
)
def test_others_are_refused_in_one_line(
    given: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message) as caught:
        parse_named_sets(given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="--validation .*picture.png: not a data file by its name"):
        parse_named_sets([f"general={folder}/picture.png"])


def test_the_flag_may_be_repeated() -> None:
    run_distributed(check_repeated, 1, cpu_emulation=True)


def check_repeated() -> None:
    from megatron_mixcpt.training.engine.arguments import explicit_arguments

    argv = ["--validation", "a=x", "b=y", "--alpha", "0.5", "--validation", "c=z"]
    assert explicit_arguments(argv, MixCPTConfig)["validation"] == ["a=x", "b=y", "c=z"]
    assert "validation" not in explicit_arguments(["--alpha", "0.5"], MixCPTConfig)


def test_text_is_tokenized_once_and_anew_when_it_changed(folder: Path) -> None:
    run_distributed(check_tokenized, 2, str(folder), cpu_emulation=True)


def check_tokenized(root: str) -> None:
    import torch.distributed as dist

    from megatron_mixcpt.data.mixture.manifest import MixtureManifest

    folder = Path(root)
    mixture = MixtureManifest.load(folder / "mixture")

    def opened() -> Path:
        sets = parse_named_sets([f"general={folder}/general.txt"])
        return open_named_sets(sets, mixture, folder / "tokenizer", None)["general"].manifest.folder

    first = opened()
    stamp = (first / "cpt.bin").stat().st_mtime_ns
    assert opened() == first and (first / "cpt.bin").stat().st_mtime_ns == stamp
    if dist.get_rank() == 0:
        (folder / "general.txt").write_text("Something else. " * 9, encoding="utf-8")
    dist.barrier()
    assert opened() != first
    assert sorted(path.name[:11] for path in (folder / "mixture" / "cache").iterdir()) == ["validation-"] * 2
