"""Which files travel, and the folder that holds them: complete, of one model, and written once.

The folder of a checkpoint with a chat template: ``test_hf_chat_template.py``; through conversions: ``test_convert.py``.
"""

import json
from pathlib import Path

import pytest

from megatron_mixcpt.conversion import hf_metadata
from megatron_mixcpt.conversion.hf_metadata import copy_files, copy_hf_metadata, metadata_digest, metadata_files
from tests.unit.conversion import tiny_hf

CARRIED = ["additional_chat_templates/rag.jinja", "config.json", "tokenizer.json", "tokenizer.model"]
LEFT = ["README.md", "model.safetensors", "model.safetensors.index.json", "modeling_x.py", "pytorch_model.bin"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "additional_chat_templates").mkdir(parents=True)
    for name in [*CARRIED, *LEFT, "source.json"]:
        (source / name).write_text(name)
    return source


def test_weights_code_and_card_do_not_travel(folder: Path, tmp_path: Path) -> None:
    assert [str(name) for name in metadata_files(folder)] == CARRIED
    (tmp_path / "copy").mkdir()
    copy_files(folder, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == set(CARRIED)
    assert (tmp_path / "copy" / CARRIED[0]).read_text() == CARRIED[0]


def test_the_digest_is_of_what_travels(folder: Path) -> None:
    digest = metadata_digest(folder)
    (folder / "README.md").write_text("changed")
    assert metadata_digest(folder) == digest
    (folder / "tokenizer.json").write_text("changed")
    assert metadata_digest(folder) != digest


def test_a_copy_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_hf.save("llama", tmp_path / "hf")

    def interrupted(source: Path, target: Path) -> None:
        (target / "config.json").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(hf_metadata, "copy_files", interrupted)
        copy_hf_metadata(tmp_path / "hf", tmp_path / "save")
    assert not list((tmp_path / "save").iterdir())
    kept = copy_hf_metadata(tmp_path / "hf", tmp_path / "save")
    assert json.loads((kept / "source.json").read_text())["base_model"] == "hf"
