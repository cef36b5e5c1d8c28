"""One tokenizer for all stages: what preprocessing encodes with is what transformers makes of the folder."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megatron_mixcpt.conversion.hf_chat_template import save_chat_template
from megatron_mixcpt.conversion.hf_metadata import copy_files
from megatron_mixcpt.data.tokens.encoder import CheckedEncoder
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles, load_tokenizer, tokenizer_digest
from megatron_mixcpt.errors import CheckpointError, ConfigError
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer
from tests.unit.data.tokenizer_classes import BOS, CLASSES, TOOL, save_model_tokenizer
from tests.unit.data.tokens.test_encoder import TRICKY, ids_of

TEXTS = [
    TRICKY,
    "def foo(x): return x + 12345",
    "  two  spaces\n\n\nand lines\r\n\ttab ",
    "The fox's e\u0301 \u4f60\u597d 3.14 caf\u00e9 \U0001f642",
    f"a{TOOL}b {TOOL} c",
    f"{BOS}a<s>b</s> <unk><|endoftext|>c<|im_end|>",
    "<0x41>",
    "",
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("use_fast", [True, False])
def test_tokens_are_those_of_transformers(tmp_path: Path, name: str, use_fast: bool) -> None:
    folder = save_model_tokenizer(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in TEXTS]
    files = TokenizerFiles.read(folder)
    encoder = CheckedEncoder(files, allow_special_tokens=False, use_fast=use_fast)
    assert ids_of(encoder, TEXTS) == expected
    assert files.eos_id == tokenizer.eos_token_id and files.vocab_size == max(tokenizer.get_vocab().values()) + 1
    assert tokenizer.convert_tokens_to_ids(TOOL) in expected[4]  # an added token that is not special is no text
    assert not set(tokenizer.all_special_ids) & set(expected[5]) - {tokenizer.unk_token_id}


@pytest.mark.parametrize("name", CLASSES)
def test_allowed_special_tokens_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    folder = save_model_tokenizer(tmp_path, name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = CheckedEncoder(TokenizerFiles.read(folder), allow_special_tokens=True)
    expected = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert ids_of(encoder, TEXTS) == expected


@pytest.mark.parametrize("name", CLASSES)
def test_the_digest_is_the_same_for_copies_and_exports(tmp_path: Path, name: str) -> None:
    folder = save_model_tokenizer(tmp_path / "model", name)
    digest = TokenizerFiles.read(folder).digest
    assert tokenizer_digest(folder) == digest
    copy = tmp_path / "copy"  # checkpoints and exports have one
    copy.mkdir()
    copy_files(folder, copy)
    save_chat_template(copy, "{{ messages }}", ())
    assert tokenizer_digest(copy) == digest
    if not name.endswith("legacy"):  # which transformers forgets
        load_tokenizer(folder).save_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / "config.json").write_text((folder / "config.json").read_text())
        assert tokenizer_digest(tmp_path / "saved") == digest


def test_the_digest_follows_the_class_that_transformers_builds(tmp_path: Path) -> None:
    """The same tokenizer.json under a qwen2 config encodes otherwise; the digest was once of the file."""
    folder = save_model_tokenizer(tmp_path, "qwen2-derivative")
    derived = tokenizer_digest(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert tokenizer_digest(folder) != derived


def test_a_name_that_is_no_token_ends_nothing(tmp_path: Path) -> None:
    """transformers gives it a new id, for which a model has no embedding, or one that was never trained."""
    folder = save_tiny_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</nope>"}')
    with pytest.raises(ConfigError, match=r"its eos_token '</nope>' is no token of its vocabulary; .* --eos-token"):
        TokenizerFiles.read(folder)
    with pytest.raises(ConfigError, match="its eos_token '</nope>' is no token of its vocabulary"):
        load_tokenizer(folder)


@pytest.mark.parametrize("settings", [{}, {"eos_token": None}])
def test_no_end_of_sequence_is_refused(tmp_path: Path, settings: dict) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="names no eos_token; name the token that ends a sample with --eos-token"):
        TokenizerFiles.read(folder)
    assert TokenizerFiles.read(folder, "<|im_end|>").eos_id == 2


def test_an_end_of_sequence_may_be_an_object_or_declared_beside_the_vocabulary(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    end = {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}})
    )
    assert TokenizerFiles.read(folder).eos_id == 2
    declared = {"eos_token": "<|end|>", "added_tokens_decoder": {"400": {**end, "special": True}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    files = TokenizerFiles.read(folder)
    assert (files.eos_token, files.eos_id, files.vocab_size) == ("<|end|>", 400, 401)


def test_another_token_may_end_samples(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    assert TokenizerFiles.read(folder, "<|im_end|>").eos_id == 2
    with pytest.raises(ConfigError, match="--eos-token <none>: .* has no such token"):
        TokenizerFiles.read(folder, "<none>")


def test_a_tokenizer_without_a_tokenizer_json_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        backend_tokenizer = None

    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(CheckpointError, match="reads its tokenizer as Slow, which has no tokenizer.json form"):
        TokenizerFiles.read(tmp_path)


def test_a_class_that_does_more_than_its_definition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text, **flags: encode(self, text.lower(), **flags))
    with pytest.raises(CheckpointError, match=r"encodes \"IT'S\" otherwise than its own definition"):
        TokenizerFiles.read(folder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer there"):
        tokenizer_digest(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer that transformers can read"):
        load_tokenizer(tmp_path)
