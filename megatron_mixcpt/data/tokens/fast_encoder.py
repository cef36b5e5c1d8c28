"""The fast encoder, and what lets it take tokenizers that single out digits without losing its speed.

``fastokens`` has a fast way for the usual splits of text into words (GPT-2's, Llama 3's, Qwen2's) and a general one,
twenty times slower. SmolLM2's tokenizer takes the general one: it isolates every number character first (a ``Digits``
step) and splits what is between them as GPT-2 does. :class:`DigitsEncoder` reaches the same tokens by the fast way,
without the ``Digits`` step, from two facts:

- A text may be cut beside any number character, for a word ends there anyway.
- Where no token of the vocabulary holds a digit and something else, no merge crosses a digit's border. What the missing
  step then still changes is white space before a digit: of two or more such characters GPT-2's split leaves the last to
  the digit. Number characters beyond ASCII are several bytes, which merges might tie to their neighbours.

So texts are cut before digits that follow two white space characters, and on both sides of other number characters.
"""

import json
import re
import unicodedata
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple, Protocol

import numpy as np

DIGIT = re.compile("[0-9]")
LAST_CODE = 0x1FFFF
"""Stands for every code point from here on: there are ideographs, no numbers."""


class Encoder(Protocol):
    """Encodes texts in batches."""

    name: str
    """The library and its version."""

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, one after the other (uint32), and the number of tokens of each (int64)."""


class FastEncoder:
    """``fastokens``. Raises ImportError where it is missing, ValueError where it cannot represent the tokenizer."""

    def __init__(self, definition: str, allow_special_tokens: bool):
        import fastokens

        self.name = f"fastokens {metadata.version('fastokens')}"
        self._split_special_tokens = not allow_special_tokens
        self._tokenizer = fastokens.Tokenizer.from_json_str(definition)
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Encoder`. Raises ValueError where it refuses one of the texts."""
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=self._split_special_tokens)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64)).astype(np.int64)


class DigitsEncoder:
    """``fastokens`` for a tokenizer that :func:`isolates_digits`. Raises as :class:`FastEncoder`."""

    def __init__(self, content: dict[str, Any], allow_special_tokens: bool):
        _, byte_level = content["pre_tokenizer"]["pretokenizers"]
        self._encoder = FastEncoder(json.dumps(content | {"pre_tokenizer": byte_level}), allow_special_tokens)
        self.name = self._encoder.name

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Encoder`. Raises ValueError where it refuses one of the texts."""
        joined = "".join(texts)
        ends = np.cumsum([len(text) for text in texts])
        # Two texts meet at ends; that they were looked at together cuts at no other place than beside a number. A place
        # that is there twice gives an empty piece, of no token.
        cuts = np.sort(np.concatenate([[0], places_to_cut(joined), ends]))
        bounds = cuts.tolist()
        ids, lengths = self._encoder.encode(
            [joined[start:end] for start, end in zip(bounds, bounds[1:], strict=False)] or [""]
        )
        tokens_before = np.concatenate([[0], np.cumsum(lengths)])[np.searchsorted(cuts, np.concatenate([[0], ends]))]
        return ids, np.diff(tokens_before).astype(np.int64)


def places_to_cut(text: str) -> np.ndarray:
    """Where :class:`DigitsEncoder` cuts: indices of characters that begin a piece, in no order, some of them twice.

    Raises ValueError for characters that this Python's Unicode does not know yet: they may be numbers.
    """
    if text.isascii():
        return _digits_after_spaces(np.frombuffer(text.encode("ascii"), np.uint8))
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    low_codes = np.minimum(codes, 255).astype(np.uint8)
    beyond = np.flatnonzero(low_codes > 127)
    found = np.minimum(codes[beyond], LAST_CODE)
    if _tables().is_unknown[found].any():
        raise ValueError("characters without a category")
    others = beyond[_tables().is_number[found]]
    return np.concatenate([_digits_after_spaces(low_codes), others, others + 1])


def _digits_after_spaces(codes: np.ndarray) -> np.ndarray:
    """Where an ASCII digit follows two characters that may be white space; ``codes`` (uint8) are at most 255.

    Control characters and what is beyond ASCII are taken for white space: a cut too many costs time, no exactness.
    """
    is_digit = codes - 48 < 10  # unsigned: what is below 0 is large
    may_be_space = codes - 33 > 94
    return np.flatnonzero(is_digit[2:] & may_be_space[1:-1] & may_be_space[:-2]) + 2


class _Tables(NamedTuple):
    """For every code point up to the last: a number (general category N); unassigned."""

    is_number: np.ndarray
    is_unknown: np.ndarray


@cache
def _tables() -> _Tables:
    categories = np.array(list(map(unicodedata.category, map(chr, range(LAST_CODE + 1)))))
    is_unknown = categories == "Cn"
    is_unknown[-1] = False
    return _Tables(np.isin(categories, ["Nd", "Nl", "No"]), is_unknown)


def isolates_digits(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one that :class:`DigitsEncoder` encodes exactly."""
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers", [])
    expected = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]
    return (
        content.get("normalizer") is None
        and len(steps) == 2
        and all(step.items() >= wanted.items() for step, wanted in zip(steps, expected, strict=True))
        and not any(DIGIT.search(token["content"]) for token in content.get("added_tokens", []))
        and not any(len(token) > 1 and DIGIT.search(token) for token in content["model"]["vocab"])
    )


def load_fast(definition: str, content: dict[str, Any], allow_special_tokens: bool) -> Encoder | None:
    """The fast encoder of a byte-level tokenizer; None where fastokens is missing or cannot represent it.

    Args:
        definition: the text of tokenizer.json.
        content: the same, parsed.
        allow_special_tokens: whether a special token's string in a text becomes that token.
    """
    try:
        if isolates_digits(content):
            return DigitsEncoder(content, allow_special_tokens)
        return FastEncoder(definition, allow_special_tokens)
    except (ImportError, ValueError, RuntimeError):
        return None
