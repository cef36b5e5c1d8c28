"""Long texts in pieces that encode to exactly the tokens of the whole, which keeps memory small and time linear.

A byte-level tokenizer first splits a text by a regular expression, then merges the bytes of each *word* so found. At
the places of ``WORD_END`` the expressions in use (GPT-2's, Llama 3's, Qwen2's, single digits) always end a word, and
what they find before does not depend on what follows, nor what they find after on what came before; an encoder tries
that on ``PROBE`` before it relies on it.

A single word of megabytes has no such place. :func:`encode_word` cuts it where two neighbouring tokens are the same
seen from both sides. Byte-pair merges are local: a sequence of tokens is the encoding of a word exactly when every two
neighbours are the encoding of their joined bytes (the property that incremental encoders such as GitHub's ``bpe`` crate
rest on). So where the encoding of one stretch has tokens ``t, u`` at some place, and that of a stretch which begins
between the two starts with ``u``, the first up to ``t`` and the second from ``u`` on are the encoding of both together.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np

WORD_END = re.compile(
    r"[^\W_](?= [^\W\d_])"  # a letter or number, a space, a letter
    r"|[A-Za-z](?=[0-9])"
    r"|[A-Za-z0-9](?=[,.:;])"  # tables of numbers have no other
    r"|(?<=[^\s_])\n(?=[^\W_])"  # a single line end before a letter or number
    r"|[\u3040-\u30ff\u4e00-\u9fff](?=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f])"  # kana or ideograph, punctuation
)
PROBE = (
    "The first word's end. it'll be x = [1, 22, 333]\n\n  for i in  range(9)\tdo  Done é ü 好 THE END of\r\n a b\nc "
    "a1b22c333 F00d ½ Д ж ß\n7\nx.\ny,\nz 3.14 1,000 12:30 a.b;c 日本語、好。ですか?はい,è\n"
)
LONG_WORD = re.compile(r"[A-Za-z]+")

STRETCH_CHARACTERS = 1 << 14
SHARED_CHARACTERS = 1 << 10
"""How far two stretches of a word reach into each other; longer than any token."""


def pieces(blocks: Iterable[str], size: int) -> Iterator[str]:
    """A text, given in blocks, in pieces of at least ``size`` characters that end where a word is sure to end."""
    waiting = ""
    for block in blocks:
        searched = max(size, len(waiting) - 2)
        waiting += block
        while match := WORD_END.search(waiting, searched):
            yield waiting[: match.end()]
            waiting = waiting[match.end() :]
            searched = size
    yield waiting


def encode_word(
    text: str, encode: Callable[[str], np.ndarray], token_string: Callable[[int], str | None]
) -> Iterator[np.ndarray]:
    """The token ids of a text that has long words, some at a time.

    ``encode`` gives the ids of a short text, ``token_string`` a token as the vocabulary writes it, in which ASCII
    letters stand for themselves. Cuts only within runs of these; where there are none the rest is encoded at once.
    """
    start, end = 0, _stretch_end(text, 0, STRETCH_CHARACTERS)
    ids = encode(text[:end])
    while end < len(text):
        for num_left, cut in _cuts(text, start, end, ids, token_string):
            next_end = _stretch_end(text, cut, STRETCH_CHARACTERS)
            next_ids = encode(text[cut:next_end])
            if next_ids[0] == ids[-num_left]:
                yield ids[:-num_left]
                start, end, ids = cut, next_end, next_ids
                break
        else:
            end = _stretch_end(text, start, 2 * (end - start))
            ids = encode(text[start:end])
    yield ids


def _stretch_end(text: str, start: int, at_least: int) -> int:
    """Where a stretch from ``start`` may end: inside a run of letters that reaches far to both sides, or at the end."""
    end = start + at_least
    while end < len(text):
        around = text[max(end - 3 * SHARED_CHARACTERS, start) : end + SHARED_CHARACTERS]
        if LONG_WORD.fullmatch(around):
            return end
        end += STRETCH_CHARACTERS
    return len(text)


def _cuts(
    text: str, start: int, end: int, ids: np.ndarray, token_string: Callable[[int], str | None]
) -> Iterator[tuple[int, int]]:
    """Places where one of the last tokens of a stretch begins: (tokens from there to its end, place in the text).

    First those ``SHARED_CHARACTERS`` before the end, which the end no longer influences.
    """
    place = end
    for num_left in range(1, len(ids)):
        token = token_string(int(ids[-num_left])) or ""
        if not token or text[place - len(token) : place] != token:
            return
        place -= len(token)
        if place < max(end - 3 * SHARED_CHARACTERS, start + SHARED_CHARACTERS):
            return
        if place <= end - SHARED_CHARACTERS:
            yield num_left, place
