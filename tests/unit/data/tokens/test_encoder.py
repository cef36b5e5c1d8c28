"""The fast encoder against the Hugging Face tokenizer: on adversarial text, and what happens when they differ."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from megatron_mixcpt.data.tokens import encoder as encoding
from megatron_mixcpt.data.tokens.encoder import CheckedEncoder, EncoderMismatch, SpecialStrings, one_encoder_thread
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

STYLES = ("gpt2", "llama3", "qwen2", "smollm2")
TRICKY = "ab Z0919²½Ⅷ٣'sS\t\n\r  ._-éÉß你🙂\u0301\u00a0\u200d\u3000\x00\x7f<|im_end|>"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenizerFiles]:
    """A tokenizer of each style, and one whose vocabulary lacks bytes."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {style: TokenizerFiles.read(save_tiny_tokenizer(folder / style, style)) for style in STYLES}
    made["lacking"] = TokenizerFiles.read(save_tiny_tokenizer(folder / "lacking", all_bytes=False))
    return made


def reference_ids(files: TokenizerFiles, texts: list[str], as_text: bool = True) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(files.definition)
    tokenizer.encode_special_tokens = as_text
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def ids_of(encoder: CheckedEncoder, texts: list[str]) -> list[list[int]]:
    ids, lengths = encoder.encode(texts)
    assert ids.dtype == np.uint32 and len(ids) == lengths.sum()
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.sampled_from(TRICKY) | st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)
)
def test_equals_hugging_face_on_any_text(files, style: str, texts: list[str]) -> None:
    encoder = CACHE.setdefault(style, CheckedEncoder(files[style], allow_special_tokens=False))
    assert encoder.is_fast
    assert ids_of(encoder, texts) == reference_ids(files[style], texts)


CACHE: dict[str, CheckedEncoder] = {}


@pytest.mark.parametrize("use_fast", [True, False])
@pytest.mark.parametrize("allow", [True, False])
def test_special_tokens_are_text_unless_allowed(files, use_fast: bool, allow: bool) -> None:
    encoder = CheckedEncoder(files["gpt2"], allow, use_fast)
    texts = ["a<|im_end|>b", "<|endoftext|>"]
    assert ids_of(encoder, texts) == reference_ids(files["gpt2"], texts, as_text=not allow)
    assert (2 in encoder.encode(texts)[0]) is allow


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("use_fast", [True, False])
def test_long_texts_are_cut_without_a_trace(files, monkeypatch, style: str, use_fast: bool) -> None:
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 50)
    random.seed(3)
    text = "".join(random.choices(TRICKY + " a b c def 12 ", k=4000))
    found = list(CheckedEncoder(files[style], False, use_fast).encode_long(text))
    assert len(found) > 20
    assert np.concatenate(found).tolist() == reference_ids(files[style], [text])[0]


def test_texts_the_fast_encoder_refuses_go_to_the_other(files) -> None:
    encoder = CheckedEncoder(files["lacking"], False)
    assert encoder.is_fast
    texts = ["the fox", "bell \x07 rings", "over"]
    assert ids_of(encoder, texts) == reference_ids(files["lacking"], texts)
    assert encoder.num_refused == 1


def test_only_the_refused_piece_of_a_text_goes_to_the_other(files, monkeypatch) -> None:
    monkeypatch.setattr(encoding, "REFUSED_CHARACTERS", 20)
    encoder = CheckedEncoder(files["lacking"], False)
    text = "the fox and the bird " * 9 + "bell \x07 rings " + "over the fox " * 9
    slow, encode = [], encoder._reference.encode
    monkeypatch.setattr(encoder._reference, "encode", lambda texts: slow.extend(texts) or encode(texts))
    assert ids_of(encoder, [text, "over"]) == reference_ids(files["lacking"], [text, "over"])
    assert "\x07" in slow[0] and len(slow) == 1 and len(slow[0]) < 50


def test_a_single_difference_is_found(files, monkeypatch) -> None:
    encoder = CheckedEncoder(files["gpt2"], False)
    encoder.compare(["the fox", "x" * 1000], [0, 77])
    assert encoder.num_compared == 2
    real = encoder._fast.encode

    def wrong(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, lengths = real(texts)
        return np.where(np.arange(len(ids)) == len(ids) - 1, 5, ids), lengths

    monkeypatch.setattr(encoder._fast, "encode", wrong)
    with pytest.raises(EncoderMismatch, match="fastokens"):
        encoder.compare(["the fox"], [0])


def test_missing_library_means_hugging_face(files, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastokens", None)
    encoder = CheckedEncoder(files["gpt2"], False)
    assert not encoder.is_fast and encoder.name.startswith("tokenizers ")
    encoder.compare(["nothing to compare"], [0])
    assert encoder.num_compared == 0


def test_special_strings_are_found(files) -> None:
    special = SpecialStrings(files["gpt2"].special_tokens)
    assert [special.find(text) for text in ("a", "<|im_end|", "a<|im_end|><|endoftext|>")] == [-1, -1, 1]
    assert SpecialStrings(()).find("<|im_end|>") == -1


def test_other_kinds_of_tokenizer_are_left_to_hugging_face(tmp_path: Path) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = {"type": "Whitespace"}
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert not CheckedEncoder(TokenizerFiles.read(folder), False).is_fast


def test_the_environment_is_as_it_was_once_encoders_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    monkeypatch.delenv("FASTOKENS_BPE_THREADS", raising=False)
    before = dict(os.environ)
    with pytest.raises(EncoderMismatch), one_encoder_thread():
        assert os.environ["RAYON_NUM_THREADS"] == os.environ["FASTOKENS_BPE_THREADS"] == "1"
        raise EncoderMismatch
    assert dict(os.environ) == before
