"""Which ``--validation NAME=PATH`` is taken, and that the same flag given twice names two sets."""

from pathlib import Path

import pytest

from megatron_mixcpt.config import MixCPTConfig
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.testing import run_distributed
from megatron_mixcpt.training.pretraining.validation_sets import open_named_sets, parse_named_sets
from tests.distributed.tiny_run import make_mixture
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
