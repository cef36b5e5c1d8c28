"""What ends documents, where a model's own settings say something else (case 24)."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_mixcpt.data.tokens.end_of_document import configured_eos, eos_warning
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer


def write(folder: Path, **files: Any) -> None:
    for name, eos in files.items():
        (folder / f"{name}.json").write_text(json.dumps({"eos_token_id": eos}))


def test_a_multimodal_models_settings_are_those_of_its_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": 7}}))
    (tmp_path / "generation_config.json").write_text("{}")
    assert configured_eos(tmp_path) == {"config.json": (7,)}


@pytest.mark.parametrize("eos", [0, [0], [5, 0], None])
def test_settings_that_agree_or_say_nothing(tmp_path: Path, eos: Any) -> None:
    write(tmp_path, config=eos, generation_config=eos)
    assert eos_warning(tmp_path, "</s>", 0) is None


def test_each_file_that_differs_is_named_with_its_tokens(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    write(folder, config=1, generation_config=[3, 2])
    (warning,) = TokenizerFiles.read(folder).warnings()
    assert warning == (
        f"{folder}: documents end with '<|endoftext|>' (id 0), but config.json names '<|im_start|>' (id 1) as the end "
        "of sequence and generation_config.json names '!' (id 3) and '<|im_end|>' (id 2) as the end of sequence; "
        "--eos-token of tools/preprocess_mixture.py chooses another"
    )


def test_an_instruct_model_whose_eos_ends_a_turn(tmp_path: Path) -> None:
    """As Qwen's and Llama 3's: all of their settings agree, and yet documents would end as a turn does."""
    folder = save_tiny_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    write(folder, config=2, generation_config=[2, 0])
    (warning,) = TokenizerFiles.read(folder).warnings()
    assert "documents end with '<|im_end|>' (id 2), but chat templates end each turn with that token" in warning
    assert TokenizerFiles.read(folder, "<|endoftext|>").warnings() == [
        f"{folder}: documents end with '<|endoftext|>' (id 0), but config.json names '<|im_end|>' (id 2) as the end of "
        "sequence; --eos-token of tools/preprocess_mixture.py chooses another"
    ]
