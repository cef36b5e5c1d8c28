"""Texts cut into pieces, and words cut into stretches, encode to exactly what Hugging Face makes of the whole."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.tokens import encoder as encoding
from megatron_mixcpt.data.tokens import splitting
from megatron_mixcpt.data.tokens.encoder import CheckedEncoder
from megatron_mixcpt.data.tokens.splitting import pieces
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer
from tests.unit.data.tokens.test_encoder import STYLES, TRICKY, reference_ids


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TokenizerFiles, CheckedEncoder]]:
    folder = tmp_path_factory.mktemp("tokenizers")
    files = {style: TokenizerFiles.read(save_tiny_tokenizer(folder / style, style)) for style in STYLES}
    return {style: (files[style], CheckedEncoder(files[style], False)) for style in STYLES}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts every few characters; no token of the tiny vocabularies is longer than what stretches share."""
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 20)
    monkeypatch.setattr(splitting, "STRETCH_CHARACTERS", 100)
    monkeypatch.setattr(splitting, "SHARED_CHARACTERS", 24)


def long_ids(encoder: CheckedEncoder, text: str | LongText) -> list[int]:
    return np.concatenate(list(encoder.encode_long(text))).tolist()


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=80, deadline=None)
@given(
    parts=st.lists(
        st.text(st.sampled_from(TRICKY + "abc 12好。か、\n"), max_size=60)
        | st.tuples(st.text("abcdefothrnquick", min_size=1, max_size=40), st.integers(1, 30)).map(
            lambda t: t[0] * t[1]
        ),
        max_size=6,
    )
)
def test_any_text_in_pieces(encoders, style: str, parts: list[str]) -> None:
    files, encoder = encoders[style]
    assert encoder._can_split and encoder._can_split_words
    text = "".join(parts)
    assert long_ids(encoder, text) == reference_ids(files, [text])[0]


@pytest.mark.parametrize("style", STYLES)
def test_a_long_word_is_encoded_in_short_stretches(encoders, monkeypatch, style: str) -> None:
    files, encoder = encoders[style]
    random.seed(5)
    word = "".join(random.choices("thequickbrownfoxjumpsover", k=5000)) + "a" * 2000
    real, lengths = encoder.encode, []
    monkeypatch.setattr(encoder, "encode", lambda texts: lengths.append(len(texts[0])) or real(texts))
    assert long_ids(encoder, word) == reference_ids(files, [word])[0]
    assert max(lengths) <= 300 and sum(lengths) < 4 * len(word)


def test_a_long_text_gives_the_tokens_of_the_string(encoders) -> None:
    files, encoder = encoders["llama3"]
    text = "".join(random.Random(1).choices(TRICKY + "some words 12 ", k=3000))
    data = text.encode()
    assert long_ids(encoder, LongText(data, 0, len(data), is_json=False)) == reference_ids(files, [text])[0]


def test_pieces_end_only_where_a_word_is_sure_to_end() -> None:
    assert list(pieces(["one t", "wo  three\nfour\n\nfive x1y 好、好 _a b"], 1)) == [
        "one", " two  three\n", "four\n\nfive", " x", "1y", " 好", "、好 _a", " b"
    ]  # fmt: skip
    assert list(pieces(["abc"], 1)) == ["abc"]


@pytest.mark.parametrize(
    ("change", "can_split"),
    [({}, True), ({"content": "to be"}, False), ({"single_word": True}, False), ({"lstrip": True}, False)],
)
def test_added_tokens_that_a_cut_could_change_forbid_cutting(tmp_path: Path, change: dict, can_split: bool) -> None:
    folder = save_tiny_tokenizer(tmp_path)
    definition = json.loads((folder / "tokenizer.json").read_text())
    token = {"id": 400, "content": "[tool]", "special": False, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    definition["added_tokens"].append(token | flags | change)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert CheckedEncoder(TokenizerFiles.read(folder), False)._can_split is can_split
