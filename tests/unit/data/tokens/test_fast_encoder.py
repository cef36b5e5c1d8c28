"""Tokenizers that single out digits: cut where the missing step would have, and encoded as Hugging Face does."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from megatron_mixcpt.data.tokens.fast_encoder import DigitsEncoder, isolates_digits, load_fast, places_to_cut
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from tests.unit.data.tiny_tokenizer import save_tiny_tokenizer

TEXTS = [
    "",
    "x = [\n    1,\n\t\t22]",
    "",
    "7  8",
    " 9",
    "1",
    "²³ ½x\u00a0\u00a0٣ 4",
    "no number",
    "12\n\n34\r\n\r\n5",
    "",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TokenizerFiles:
    """A tokenizer that splits as SmolLM2's does."""
    return TokenizerFiles.read(save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"), "smollm2", vocab_size=600))


def test_equals_hugging_face_text_by_text(files: TokenizerFiles) -> None:
    encoder = load_fast(files.definition, json.loads(files.definition), allow_special_tokens=False)
    assert isinstance(encoder, DigitsEncoder)
    ids, lengths = encoder.encode(TEXTS)
    expected = [encoding.ids for encoding in Tokenizer.from_str(files.definition).encode_batch(TEXTS)]
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == expected
    assert [length.tolist() for length in encoder.encode([])] == [[], []]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a 1", ["a 1"]),
        ("a  1 2", ["a  ", "1 2"]),
        ("  1", ["  ", "1"]),
        ("a\n\t12  x", ["a\n\t", "12  x"]),
        ("x²y", ["x", "²", "y"]),
        ("12 ½", ["12 ", "½"]),
    ],
)
def test_where_texts_are_cut(text: str, pieces: list[str]) -> None:
    bounds = sorted({0, *places_to_cut(text).tolist(), len(text)})
    assert [text[start:end] for start, end in zip(bounds, bounds[1:], strict=False)] == pieces


def test_a_character_that_may_be_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="without a category"):
        places_to_cut("\u0378")  # unassigned


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["model"]["vocab"].update({"x1": 10_000}),
        lambda content: content.update(normalizer={"type": "NFC"}),
        lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
        lambda content: content["pre_tokenizer"]["pretokenizers"].reverse(),
        lambda content: content["added_tokens"][0].update(content="<extra_1>"),
    ],
)
def test_other_tokenizers_are_left_to_the_general_way(files: TokenizerFiles, change) -> None:
    content = json.loads(files.definition)
    assert isolates_digits(content)
    change(content)
    assert not isolates_digits(content)


def test_the_usual_splits_have_no_digits_step(tmp_path: Path) -> None:
    for style in ("gpt2", "llama3", "qwen2"):
        definition = (save_tiny_tokenizer(tmp_path / style, style) / "tokenizer.json").read_text(encoding="utf-8")
        assert not isolates_digits(json.loads(definition))
