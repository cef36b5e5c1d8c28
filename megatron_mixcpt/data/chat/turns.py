"""A rendered dialogue is cut into what the model reads and what it is to write.

The border is where the messages before a turn, rendered alone with the template's generation prompt, end. Where that
text is no beginning of the whole, the template rewrites a turn once more of the conversation follows, as Qwen3's does
with the reasoning of earlier turns: then only the last turn can be learned, or none.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from megatron_mixcpt.data.chat.special_tokens import SpecialTokens

EMPTY_REASONING = re.compile(r"\s*(?:<think>)?\s*</think>")
"""What templates of models that reason write before an answer without reasoning."""


class Turn(NamedTuple):
    """A turn of the assistant that is learned, and what stands before it since the last one; rendered text."""

    context: str
    lead: str
    """An empty block of reasoning that the template puts before the answer by itself; else empty."""
    response: str
    """With its end-of-turn tokens, if the template writes any."""
    num_end_tokens: int
    """How many special tokens end it; 0 where the tokenizer's end of sequence has to be put there."""


class Borders(NamedTuple):
    """Where the turns that are learned begin and end in the rendered dialogue."""

    starts: Sequence[int]
    ends: Sequence[int]


def wanted_beginnings(turns: Sequence[int]) -> list[tuple[int, bool]]:
    """What to render of a dialogue, as (number of messages, with generation prompt): the whole, then each border."""
    borders = [(place + is_end, not is_end) for place in turns for is_end in (False, True)]
    return [(turns[-1] + 1, False), *borders[:-1]]


def find_borders(whole: str, beginnings: Sequence[str]) -> Borders | None:
    """The borders of all turns, of the last turn alone where others are rewritten, or None where it is, too.

    ``beginnings``: what :func:`wanted_beginnings` asked for after the whole.
    """
    if not whole.startswith(beginnings[-1]):
        return None
    lengths = list(map(len, beginnings))
    if all(map(whole.startswith, beginnings)) and lengths == sorted(lengths):
        return Borders(lengths[::2], [*lengths[1::2], len(whole)])
    return Borders(lengths[-1:], [len(whole)])


def cut(whole: str, borders: Borders, contents: Sequence[str], special: SpecialTokens) -> list[Turn]:
    """The turns of a rendered dialogue; ``contents``: of the messages that are learned, as the template saw them."""
    turns, position = [], 0
    contents = contents[len(contents) - len(borders.starts) :]
    for content, start, end in zip(contents, borders.starts, borders.ends, strict=True):
        context = whole[position:start]
        lead, rest = _reasoning_in_its_place(context, whole[start:end], content)
        stop, num_end_tokens = special.at_end(rest)
        response = rest[:stop] if num_end_tokens else rest.rstrip()
        turns.append(Turn(context, lead, response, num_end_tokens))
        position = end - len(rest) + len(response)
    return turns


def _reasoning_in_its_place(context: str, turn: str, content: str) -> tuple[str, str]:
    """The empty block of reasoning that the template put before the answer, and the rest of the turn.

    Content that brings reasoning of its own (``reasoning</think>answer``) gets no empty block besides; it begins with
    ``<think>``, unless the generation prompt does that.
    """
    found = EMPTY_REASONING.match(turn)
    if not found:
        return "", turn
    answer = content.strip()
    start = max(turn.find(content.rstrip(), found.end()), turn.find(answer, found.end()))
    if "</think>" not in answer:
        start = max(start, found.end()) if answer else len(turn) - len(turn[found.end() :].lstrip())
        return turn[:start], turn[start:]
    if start < 0 or turn.count("</think>") == answer.count("</think>"):
        return "", turn
    raw = turn[start:].removeprefix("<think>").removeprefix("\n")
    return "", raw if context.rstrip().endswith("<think>") else f"<think>\n{raw}"
