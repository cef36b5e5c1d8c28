"""Texts become token ids: by the fastest exact encoder, checked against the Hugging Face tokenizer in every run.

``fastokens`` encodes byte-level BPE a hundred times faster than ``tokenizers``, the library behind Hugging Face's fast
tokenizers, and into one flat array. (It reads some tokenizers of other kinds too, but was seen to differ on those.)
:class:`CheckedEncoder` uses it where the tokenizer is byte-level, compares a share of the texts with what
``tokenizers`` makes of them, and raises :class:`EncoderMismatch` at the first difference; the run then starts again
with ``tokenizers`` alone. What fastokens refuses of a single text goes to ``tokenizers`` too.

Text is text: a special token's string inside it is encoded as ordinary characters (what transformers calls
``split_special_tokens``), unless ``allow_special_tokens`` is set.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from itertools import islice
from typing import Any

import numpy as np

from megatron_mixcpt.data.long_text import LongText, slices
from megatron_mixcpt.data.tokens.fast_encoder import Encoder, load_fast
from megatron_mixcpt.data.tokens.splitting import PROBE, WORD_END, encode_word, pieces
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles

EXCERPT_CHARACTERS = 256
PIECE_CHARACTERS = 1 << 17
REFUSED_CHARACTERS = 1 << 12
"""At least so many of a text go to the slow encoder where the fast one refuses something in it."""
PROBE_LETTERS = "abcDEFghiJKLmnop"


class EncoderMismatch(Exception):
    """The fast encoder and the Hugging Face tokenizer differ on a text."""


ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "FASTOKENS_BPE_THREADS": "1"}


@contextmanager
def one_encoder_thread() -> Iterator[None]:
    """Encoders that are loaded within it, here or in a forked process, keep to the thread that calls them.

    The work is spread over processes, and fastokens' own pool spins between batches: it would take twice the time of
    one thread. The environment is restored at the end, for it is also that of whoever preprocesses within a larger
    program, such as a trainer that tokenizes a validation text.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
        """See :class:`~megatron_mixcpt.data.tokens.fast_encoder.Encoder`."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        return np.concatenate([np.zeros(0, np.uint32), *ids]), np.array([len(part) for part in ids], np.int64)

    def token_string(self, token_id: int) -> str | None:
        """A token as the vocabulary writes it."""
        return self._tokenizer.id_to_token(token_id)

    def is_one_word(self, text: str) -> bool:
        """Whether the pre-tokenizer leaves a text in one piece."""
        return len(self._tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


class CheckedEncoder:
    """The fast encoder where it is exact, else the Hugging Face tokenizer."""

    def __init__(self, files: TokenizerFiles, allow_special_tokens: bool, use_fast: bool = True):
        content = json.loads(files.definition)
        is_byte_level = _is_byte_level(content)
        self._reference = HuggingFaceEncoder(files, allow_special_tokens)
        self._fast = load_fast(files.definition, content, allow_special_tokens) if use_fast and is_byte_level else None
        self._can_split = (
            is_byte_level and _added_tokens_stay_whole(content, allow_special_tokens) and self._try_split()
        )
        self._can_split_words = self._can_split and self._reference.is_one_word(PROBE_LETTERS * 64)
        self.name = (self._fast or self._reference).name
        self.num_compared = 0
        """Texts encoded by both so far."""
        self.num_refused = 0
        """Texts so far of which only the Hugging Face tokenizer took a piece."""

    def _try_split(self) -> bool:
        whole, _ = self._reference.encode([PROBE])
        parts, _ = self._reference.encode(list(pieces([PROBE], 1)))
        return np.array_equal(whole, parts)

    @property
    def is_fast(self) -> bool:
        """Whether the fast encoder is used."""
        return self._fast is not None

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~megatron_mixcpt.data.tokens.fast_encoder.Encoder`."""
        if self._fast is None:
            return self._reference.encode(texts)
        try:
            return self._fast.encode(texts)
        except (ValueError, RuntimeError):
            return self._encode_one_by_one(self._fast, texts)

    def encode_long(self, text: str | LongText) -> Iterator[np.ndarray]:
        """Token ids of one text (uint32), some at a time, in bounded memory where the text can be cut."""
        blocks = slices(text, PIECE_CHARACTERS)
        for piece in pieces(blocks, PIECE_CHARACTERS) if self._can_split else ["".join(blocks)]:
            if self._can_split_words and len(piece) > 2 * PIECE_CHARACTERS:
                yield from encode_word(piece, self._encode_one, self._reference.token_string)
            else:
                yield self._encode_one(piece)

    def _encode_one(self, text: str) -> np.ndarray:
        return self.encode([text])[0]

    def _encode_one_by_one(self, fast: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids = []
        for text in texts:
            try:
                ids.append(fast.encode([text])[0])
            except (ValueError, RuntimeError):
                self.num_refused += 1
                parts = pieces([text], REFUSED_CHARACTERS) if self._can_split else [text]
                ids.append(np.concatenate([self._encode_refused(fast, part) for part in parts]))
        return np.concatenate(ids), np.array([len(part) for part in ids], np.int64)

    def _encode_refused(self, fast: Encoder, text: str) -> np.ndarray:
        try:
            return fast.encode([text])[0]
        except (ValueError, RuntimeError):
            return self._reference.encode([text])[0]

    def compare(self, texts: list[str | LongText], starts: list[int]) -> None:
        """Encode texts with both encoders. Raises EncoderMismatch where they differ.

        Of a long text only an excerpt is compared, for the reference is slow and both encode piece by piece; ``starts``
        says where each text's would begin (modulo its length).
        """
        if self._fast is None:
            return
        excerpts = [_excerpt(text, start) for text, start in zip(texts, starts, strict=True)]
        refused = self.num_refused  # an excerpt that is refused is no text of its own
        fast_ids, fast_lengths = self.encode(excerpts)
        self.num_refused = refused
        ids, lengths = self._reference.encode(excerpts)
        if not (np.array_equal(ids, fast_ids) and np.array_equal(lengths, fast_lengths)):
            raise EncoderMismatch(self.name)
        self.num_compared += len(texts)


def _excerpt(text: str | LongText, position: int) -> str:
    if isinstance(text, str) and len(text) <= EXCERPT_CHARACTERS:
        return text
    start = position % max(1, len(text) - EXCERPT_CHARACTERS)
    if isinstance(text, str):
        return text[start : start + EXCERPT_CHARACTERS]
    number, inside = divmod(start, PIECE_CHARACTERS)
    block = next(islice(slices(text, PIECE_CHARACTERS, EXCERPT_CHARACTERS), number, None))
    return block[inside : inside + EXCERPT_CHARACTERS]


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level and treats the start of a text like any other place."""
    normalizer, pre_tokenizer = content.get("normalizer"), content.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    plain = {"ByteLevel", "Split", "Digits"}
    return (
        (normalizer is None or normalizer.get("type") == "NFC")
        and all(step.get("type") in plain and not step.get("add_prefix_space") for step in steps)
        and any(step.get("type") == "ByteLevel" for step in steps)
    )


def _added_tokens_stay_whole(content: dict[str, Any], allow_special_tokens: bool) -> bool:
    """Whether no added token that is looked for in texts heeds what is beside it, or could lie across a piece's end."""
    looked_for = [token for token in content.get("added_tokens", []) if allow_special_tokens or not token["special"]]
    return not any(
        token["single_word"] or token["lstrip"] or token["rstrip"] or WORD_END.search(f"x{token['content']}x")
        for token in looked_for
    )


class SpecialStrings:
    """Finds special tokens' strings in texts."""

    def __init__(self, special_tokens: tuple[str, ...]):
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._overlap = max(map(len, special_tokens), default=1) - 1

    def find(self, text: str | LongText) -> int:
        """Where the first special token's string stands in ``text``; -1 where there is none."""
        if self._pattern is None:
            return -1
        for number, block in enumerate(slices(text, PIECE_CHARACTERS, self._overlap)):
            if match := self._pattern.search(block):
                return number * PIECE_CHARACTERS + match.start()
        return -1
