"""mixture.json: round trip, what a damaged folder says, and whose tokenizer it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_mixcpt.data.mixture.manifest import MixtureManifest, SourceSummary
from megatron_mixcpt.data.tokens.tokenizer_files import tokenizer_digest
from megatron_mixcpt.errors import CheckpointError, DataError
from tests.unit.data.mixture.test_plan import write_mixture
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


def test_round_trip(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[3, 4], dpo=[5])
    source = SourceSummary("a.jsonl", 12, "ab", records=3, samples=2, tokens=7, rejects={"empty": 1})
    kinds = {**manifest.datasets, "cpt": replace(manifest.datasets["cpt"], sources=(source,), notes={"template x": 2})}
    expected = replace(manifest, datasets=kinds, settings={"--workers": 2})
    expected.save()
    assert MixtureManifest.load(tmp_path) == expected
    assert expected.prefix("cpt") == str(tmp_path / "cpt")
    assert not list(tmp_path.glob("*.tmp"))


def test_folder_that_is_no_mixture(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished mixture"):
        MixtureManifest.load(tmp_path)
    for content in ("{", "[]", '{"format": 99}', '{"format": 1}'):
        (tmp_path / "mixture.json").write_text(content)
        with pytest.raises(DataError, match="run tools/preprocess_mixture.py again"):
            MixtureManifest.load(tmp_path)


def test_a_mixture_of_another_format_is_refused(tmp_path: Path) -> None:
    write_mixture(tmp_path, cpt=[3, 4])
    content = json.loads((tmp_path / "mixture.json").read_text())
    (tmp_path / "mixture.json").write_text(json.dumps(content | {"format": content["format"] + 1}))
    with pytest.raises(DataError, match="not a mixture of format"):
        MixtureManifest.load(tmp_path)


def test_dataset_of_another_run_is_noticed(tmp_path: Path) -> None:
    write_mixture(tmp_path, cpt=[3, 4])
    content = json.loads((tmp_path / "mixture.json").read_text())
    content["kinds"]["cpt"]["tokens"] = 8
    (tmp_path / "mixture.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="2 samples with 7 tokens where .* says 2 with 8"):
        MixtureManifest.load(tmp_path)
    (tmp_path / "cpt.bin").unlink()
    with pytest.raises(DataError, match="cpt.bin: is missing"):
        MixtureManifest.load(tmp_path)


def test_other_tokenizer_is_refused(tmp_path: Path) -> None:
    manifest = write_mixture(tmp_path, cpt=[3])
    save_tiny_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="preprocess again with --tokenizer"):
        manifest.check_tokenizer(tmp_path)
    identity = replace(manifest.tokenizer, digest=tokenizer_digest(tmp_path))
    replace(manifest, tokenizer=identity).check_tokenizer(tmp_path)
