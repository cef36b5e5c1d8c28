"""A tokenizer.json that encodes otherwise than what transformers makes of the folder is named, with an example."""

from pathlib import Path

import pytest

from megatron_mixcpt.data.tokens.file_difference import file_difference
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles, load_tokenizer
from tests.unit.data.tokenizer_classes import CLASSES, save_model_tokenizer


@pytest.mark.parametrize("name", CLASSES)
def test_only_what_differs_is_named(tmp_path: Path, name: str) -> None:
    files = TokenizerFiles.read(save_model_tokenizer(tmp_path, name))
    assert bool(files.warnings()) is (name == "qwen2-derivative" or name.startswith("sentencepiece")), files.warnings()


def test_a_sentencepiece_class_takes_a_leading_space_for_its_own(tmp_path: Path) -> None:
    """As in Llama 2: its tokenizer.json puts a space before every text, its class only where there is none."""
    (warning,) = TokenizerFiles.read(save_model_tokenizer(tmp_path, "sentencepiece")).warnings()
    assert warning.endswith("' a' becomes 1 token [\u2581a], and by tokenizer.json 2 tokens [\u2581 \u2581a]")


def test_the_example_has_both_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model_tokenizer(tmp_path, "qwen2-derivative")
    (warning,) = TokenizerFiles.read(folder).warnings()
    assert warning == (
        f"{folder}: transformers builds a tokenizer of its own for this folder, which all stages use: '12345' becomes "
        "5 tokens [1 2 3 4 5], and by tokenizer.json 4 tokens [12 3 4 5]"
    )
    for _ in range(2):
        load_tokenizer(folder)
    assert capsys.readouterr().out == f"warning: {warning}\n"  # once


def test_a_folder_without_tokenizer_json_has_nothing_to_compare(tmp_path: Path) -> None:
    assert file_difference(tmp_path, "{}") is None
