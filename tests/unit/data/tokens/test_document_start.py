"""What stands before a document is what the tokenizer writes before a text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_mixcpt.data.tokens.document_start import bos_id_of, document_start_id
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from tests.unit.data.tokenizer_classes import CLASSES, save_model_tokenizer

WITH_BOS = ("llama3", "sentencepiece", "sentencepiece-legacy")


@pytest.mark.parametrize("name", CLASSES)
def test_only_what_the_tokenizer_writes_counts(tmp_path: Path, name: str) -> None:
    folder = save_model_tokenizer(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = tokenizer.bos_token_id if name in WITH_BOS else None
    assert bos_id_of(tokenizer) == TokenizerFiles.read(folder).bos_id == bos
    assert tokenizer("text").input_ids[: bos is not None] == ([] if bos is None else [bos])
    assert document_start_id(tokenizer) == (tokenizer.eos_token_id if bos is None else bos)
    assert document_start_id(tokenizer, bos=False) == tokenizer.eos_token_id


def test_a_bos_that_is_named_and_not_written_is_none(tmp_path: Path) -> None:
    """As SmolLM2's <|im_start|>, which begins a turn."""
    folder = save_model_tokenizer(tmp_path, "smollm2")
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == 1 and bos_id_of(tokenizer) is None
