"""Texts become token ids: by the fastest exact encoder, checked against the Hugging Face tokenizer in every run.

``fastokens`` encodes byte-level BPE a hundred times faster than ``tokenizers``, the library behind Hugging Face's fast
tokenizers, and into one flat array. (It reads some tokenizers of other kinds too, but was seen to differ on those.)
:class:`CheckedEncoder` uses it where the tokenizer is byte-level, compares a share of the texts with what
``tokenizers`` makes of them, and raises :class:`EncoderMismatch` at the first difference; the run then starts again
with ``tokenizers`` alone. A single text that fastokens refuses goes to ``tokenizers`` too.

Text is text: a special token's string inside it is encoded as ordinary characters (what transformers calls
``split_special_tokens``), unless ``allow_special_tokens`` is set.
"""

import json
import os
import re
from collections.abc import Iterator
from importlib import metadata
from typing import Protocol

import numpy as np

from megatron_mixcpt.data.tokenizer_files import TokenizerFiles

EXCERPT_CHARACTERS = 256
PIECE_CHARACTERS = 1 << 18
# Between a letter and a space before a letter every byte-level pre-tokenizer in use ends one piece and begins the next.
PIECE_END = re.compile(r"[A-Za-z](?= [A-Za-z])")
PROBE = "The first word's end. it'll be x = [1, 22, 333]\n\n  for i in  range(9)\tdo  Done é ü 好 THE END of\r\n a b"


class EncoderMismatch(Exception):
    """The fast encoder and the Hugging Face tokenizer differ on a text."""


class Encoder(Protocol):
    """Encodes texts in batches."""

    name: str
    """The library and its version."""

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of all texts, one after the other (uint32), and the number of tokens of each (int64)."""


def limit_encoder_threads() -> None:
    """Keep the encoders to the calling thread, for the work is spread over processes. Call before they are loaded."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"


class HuggingFaceEncoder:
    """The reference: ``tokenizers``, as transformers uses it."""

    def __init__(self, files: TokenizerFiles, allow_special_tokens: bool):
        from tokenizers import Tokenizer

        self.name = f"tokenizers {metadata.version('tokenizers')}"
        self._tokenizer = Tokenizer.from_str(files.definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = not allow_special_tokens

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Encoder`."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return np.concatenate([np.zeros(0, np.uint32), *ids]), np.array([len(part) for part in ids], np.int64)


class FastEncoder:
    """``fastokens``. Raises ImportError where it is missing, ValueError where it cannot represent the tokenizer."""

    def __init__(self, files: TokenizerFiles, allow_special_tokens: bool):
        import fastokens

        self.name = f"fastokens {metadata.version('fastokens')}"
        self._split_special_tokens = not allow_special_tokens
        self._tokenizer = fastokens.Tokenizer.from_json_str(files.definition)
        self._tokenizer.no_truncation()

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Encoder`. Raises ValueError where it refuses one of the texts."""
        ids, offsets = self._tokenizer.encode_batch_flat(texts, split_special_tokens=self._split_special_tokens)
        return np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64)).astype(np.int64)


class CheckedEncoder:
    """The fast encoder where it is exact, else the Hugging Face tokenizer."""

    def __init__(self, files: TokenizerFiles, allow_special_tokens: bool, use_fast: bool = True):
        self._reference = HuggingFaceEncoder(files, allow_special_tokens)
        self._fast = self._load_fast(files, allow_special_tokens) if use_fast else None
        self._can_split = _is_byte_level(files.definition) and self._probe_split()
        self.name = (self._fast or self._reference).name
        self.num_compared = 0
        """Texts encoded by both so far."""
        self.num_refused = 0
        """Texts so far that only the Hugging Face tokenizer took."""

    @staticmethod
    def _load_fast(files: TokenizerFiles, allow_special_tokens: bool) -> FastEncoder | None:
        try:
            return FastEncoder(files, allow_special_tokens) if _is_byte_level(files.definition) else None
        except (ImportError, ValueError, RuntimeError):
            return None

    def _probe_split(self) -> bool:
        whole, _ = self._reference.encode([PROBE])
        pieces, _ = self._reference.encode(list(_pieces(PROBE, 1)))
        return np.array_equal(whole, pieces)

    @property
    def is_fast(self) -> bool:
        """Whether the fast encoder is in use."""
        return self._fast is not None

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Encoder`. Long texts are encoded piece by piece, which bounds memory and changes nothing."""
        if not self._can_split or max(map(len, texts), default=0) <= PIECE_CHARACTERS:
            return self._encode(texts)
        parts = [list(self.encode_in_pieces(text)) for text in texts]
        lengths = [sum(map(len, pieces)) for pieces in parts]
        return np.concatenate([ids for pieces in parts for ids in pieces]), np.array(lengths, np.int64)

    def encode_in_pieces(self, text: str) -> Iterator[np.ndarray]:
        """Token ids of one text (uint32), some at a time, for texts too long to hold all of them."""
        for piece in _pieces(text, PIECE_CHARACTERS) if self._can_split else [text]:
            yield self._encode([piece])[0]

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._fast is None:
            return self._reference.encode(texts)
        try:
            return self._fast.encode(texts)
        except (ValueError, RuntimeError):
            return self._encode_one_by_one(texts)

    def _encode_one_by_one(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for text in texts:
            try:
                parts.append(self._fast.encode([text]))
            except (ValueError, RuntimeError):
                self.num_refused += 1
                parts.append(self._reference.encode([text]))
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([lengths for _, lengths in parts])

    def compare(self, texts: list[str], starts: list[int]) -> None:
        """Encode texts with both encoders. Raises EncoderMismatch where they differ.

        Of a long text only an excerpt is compared, for the reference is slow and both encode piece by piece; ``starts``
        says where each text's would begin (modulo its length).
        """
        if self._fast is None:
            return
        excerpts = [_excerpt(text, start) for text, start in zip(texts, starts, strict=True)]
        refused = self.num_refused
        fast_ids, fast_lengths = self.encode(excerpts)
        self.num_refused = refused
        ids, lengths = self._reference.encode(excerpts)
        if not (np.array_equal(ids, fast_ids) and np.array_equal(lengths, fast_lengths)):
            raise EncoderMismatch(self.name)
        self.num_compared += len(texts)


def _excerpt(text: str, position: int) -> str:
    if len(text) <= EXCERPT_CHARACTERS:
        return text
    start = position % (len(text) - EXCERPT_CHARACTERS)
    return text[start : start + EXCERPT_CHARACTERS]


def _pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at least ``size`` characters that encode to the same tokens as the whole."""
    start = 0
    while match := PIECE_END.search(text, start + size):
        yield text[start : match.end()]
        start = match.end()
    yield text[start:]


def _is_byte_level(definition: str) -> bool:
    """Whether a tokenizer.json is byte-level and treats the start of a text like any other place."""
    content = json.loads(definition)
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    plain = {"ByteLevel", "Split", "Digits"}
    return (
        (normalizer is None or normalizer.get("type") == "NFC")
        and all(step.get("type") in plain and not step.get("add_prefix_space") for step in steps)
        and any(step.get("type") == "ByteLevel" for step in steps)
    )


class SpecialStrings:
    """Finds special tokens' strings in texts."""

    def __init__(self, special_tokens: tuple[str, ...]):
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def find(self, text: str) -> int:
        """Where the first special token's string stands in ``text``; -1 where there is none."""
        match = self._pattern.search(text) if self._pattern else None
        return match.start() if match else -1
