"""Pieces of rendered text become token ids, those of many conversations in one call of the tokenizer.

A piece that begins a sequence is encoded as transformers encodes a rendered conversation. One that goes on must get
what the tokenizer gives at such a place. To byte-level tokenizers all places are alike. SentencePiece puts a blank
before whatever it takes for the start of a text, some of its tokenizers also after each control token: behind other
text, such a piece is encoded with a character before it, whose tokens are taken off again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_mixcpt.data.chat.special_tokens import SpecialTokens, without_mark

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

PROBES = ("\n", "x", "0", ".", "é")
"""Characters to put before a piece; one serves where it does not merge with the piece's start."""


class Piece(NamedTuple):
    """Rendered text, and what it follows."""

    text: str
    mark: str
    """What breaks special tokens' strings in it that are text; empty for none."""
    follows: str
    """``nothing``, ``token`` (a control token) or ``text``."""


class PieceEncoder:
    """Encodes pieces with one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", special: SpecialTokens):
        self._backend: Any = tokenizer.backend_tokenizer
        self._special = special
        self._eos: str = tokenizer.eos_token
        self._eos_id: int = tokenizer.eos_token_id
        self._probes = [(probe, ids) for probe in PROBES if (ids := self._ids([probe], is_text=True)[0])]
        plain, behind_text, (_, *behind_token) = self._ids(["x", "\nx", self._eos + "x"], is_text=False)
        self._marks_start = behind_text != self._ids(["\n"], is_text=True)[0] + plain
        self._marks_tokens = self._marks_start and behind_token == plain

    def encode(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """The token ids of each piece. Equal pieces are encoded once."""
        parts = {piece: self._parts(piece) for piece in dict.fromkeys(pieces)}
        strings = {part for found in parts.values() for part in found if isinstance(part, _Part)}
        ids = self._encode_parts(list(strings))
        return [_joined(parts[piece], ids) for piece in pieces]

    def _parts(self, piece: Piece) -> list["_Part | int"]:
        """Text as the tokenizer can take it, and ids of special tokens between."""
        if not piece.mark:
            return [_Part(piece.text, self._behind(piece.follows), is_text=False)] if piece.text else []
        parts: list[_Part | int] = []
        position, follows = 0, piece.follows
        for start, end, token_id in [*self._special.find(piece.text), (len(piece.text), 0, None)]:
            if text := without_mark(piece.text[position:start], piece.mark):
                parts.append(_Part(text, self._behind(follows), is_text=True))
            if token_id is not None:
                parts.append(token_id)
            position, follows = end, "token"
        return parts

    def _behind(self, follows: str) -> str:
        """What a piece must be encoded behind, given what it follows."""
        if not self._marks_start or (self._marks_tokens and follows == "token"):
            return "nothing"
        return follows

    def _encode_parts(self, parts: list["_Part"]) -> dict["_Part", list[int]]:
        found: dict[_Part, list[int]] = {}
        for is_text in (False, True):
            left = [part for part in parts if part.is_text == is_text]
            found |= self._encode_behind("", [], [part for part in left if part.behind == "nothing"])
            if not is_text:
                eos = self._eos, [self._eos_id]
                found |= self._encode_behind(*eos, [part for part in left if part.behind == "token"])
            for probe in (*self._probes, ("", [])):
                found |= self._encode_behind(*probe, [part for part in left if part not in found])
        return found

    def _encode_behind(self, before: str, ids_before: list[int], parts: list["_Part"]) -> dict["_Part", list[int]]:
        """The ids of each part when ``before`` stands before it, without those of ``before``; not where they merge."""
        encoded = self._ids([before + part.text for part in parts], is_text=bool(parts) and parts[0].is_text)
        cut = len(ids_before)
        return {part: ids[cut:] for part, ids in zip(parts, encoded, strict=True) if ids[:cut] == ids_before}

    def _ids(self, texts: list[str], is_text: bool) -> list[list[int]]:
        """``is_text``: special tokens' strings are text."""
        if not texts:
            return []
        # Set anew each time, as transformers does, which shares the tokenizer.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = is_text
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


class _Part(NamedTuple):
    text: str
    behind: str
    """As ``Piece.follows``."""
    is_text: bool
    """Whether special tokens' strings in it are text."""


def _joined(parts: list["_Part | int"], ids: dict["_Part", list[int]]) -> list[int]:
    if len(parts) == 1 and isinstance(parts[0], _Part):
        return ids[parts[0]]
    return [token for part in parts for token in ([part] if isinstance(part, int) else ids[part])]
