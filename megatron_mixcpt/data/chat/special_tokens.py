"""The control tokens of a tokenizer, in text.

*Text is text*: a special token's string inside a message (``<|im_end|>``) is told apart from the template's own, so
that a record cannot end its turn itself. A private-use character, the *mark*, is put into such strings before
rendering, which survives in the rendered text; ``pieces.py`` takes it out again where it encodes them as text.
"""

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xF0000, 0x10FFFE)


class SpecialTokens:
    """The control tokens of a tokenizer, found in text as the tokenizer finds them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        tokens = [
            token for token in tokenizer.added_tokens_decoder.values() if token.special and len(token.content) > 1
        ]
        tokens.sort(key=lambda token: len(token.content), reverse=True)
        self._ids = [tokenizer.convert_tokens_to_ids(token.content) for token in tokens]
        self._swallows = {token.content: token.rstrip for token in tokens}
        self._contents = tuple(self._swallows)
        blanks = [(r"\s*" * token.lstrip, r"\s*" * token.rstrip) for token in tokens]
        parts = [
            f"({left}{re.escape(token.content)}{right})" for token, (left, right) in zip(tokens, blanks, strict=True)
        ]
        self._pattern = re.compile("|".join(parts) or "(?!)")  # (?!) matches nothing
        # Without groups, the regular expression engine skips to characters that a token can begin with.
        self._any = re.compile("|".join(map(re.escape, self._contents)) or "(?!)")

    def occur_in(self, texts: Iterable[str]) -> bool:
        """Whether any of ``texts`` holds a special token's string."""
        return any(map(self._any.search, texts))

    def find(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, token id) of each special token in ``text``, with the blanks that it swallows."""
        found = self._pattern.finditer(text)
        return [(*match.span(), self._ids[match.lastindex - 1]) for match in found if match.lastindex]

    def at_end(self, text: str) -> tuple[int, int]:
        """Where the special tokens end that end ``text``, but for blanks, and how many they are; (0, 0) for none.

        Blanks that the last of them swallows belong to it.
        """
        left = text.rstrip()
        end, count = 0, 0
        while left.endswith(self._contents):
            token = next(content for content in self._contents if left.endswith(content))
            if not count:
                end = len(text) if self._swallows[token] else len(left)
            count += 1
            left = left.removesuffix(token)
        return end, count

    def broken(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` inside each special token's string, which is none any more."""
        return self._any.sub(lambda match: match[0][:1] + mark + match[0][1:], text) if mark else text


def without_mark(text: str, mark: str) -> str:
    """Rendered text as it is to be read; templates that write JSON may have escaped the mark."""
    return text.replace(mark, "").replace(json.dumps(mark)[1:-1], "") if mark else text


def unused_mark(texts: Iterable[str]) -> str:
    """A private-use character that none of ``texts`` contains."""
    used = set().union(*texts)
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in used)
