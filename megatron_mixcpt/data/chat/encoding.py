"""Conversations and preference pairs become token ids in a chat template, with what is supervised told from the rest.

Supervised is every assistant turn: its text and its end-of-turn token, so that the model learns to stop. Prompts, role
headers and whatever follows the end of a turn (ChatML's newline) are context. Where the template writes no special
token at the end of a turn, the tokenizer's end of sequence is put there. What follows the last assistant turn is left
out.

A turn is encoded apart from what stands before it, so that no byte pair merges across the border: the model generates
from a prompt that was encoded alone. The border is where the prompt with the template's generation prompt ends.

A sample that cannot be used gives a :class:`Refusal`, not an exception.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_mixcpt.data.chat.renderer import RenderingError
from megatron_mixcpt.data.chat.templates import ChatTemplate, SpecialTokens, render_beginnings, unused_mark
from megatron_mixcpt.data.records import Conversation, Message, PreferencePair
from megatron_mixcpt.errors import ConfigError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

REFUSALS = {
    "no_assistant_turn": "no message of the assistant",
    "no_query": "nothing stands before the assistant's message",
    "empty_response": "the assistant's message is empty",
    "lone_surrogate": "a message holds half of a surrogate pair, which no tokenizer takes",
    "several_turns": "the two responses are not one message of the assistant each",
    "template_refuses": "the chat template does not take such a conversation",
    "too_long": "more tokens than the sequence length",
}
"""Why a good record gives no sample in a chat template, by the name that reports give it."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""What other data sets call the two sides, and how chat templates do."""


@dataclass(frozen=True)
class Refusal:
    """Why a sample is not used: ``reason`` is a key of ``REFUSALS``."""

    reason: str
    detail: str


@dataclass(frozen=True, eq=False)
class EncodedConversation:
    """``tokens``: int32 [n]; ``loss_mask``: bool [n], True where the token is to be predicted. The first never is.

    ``notes`` name what happened to a sample that is used all the same, to be counted.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedPair:
    """A prompt that ends with the generation prompt, and two responses with their end-of-turn; int32 [n] each.

    ``num_end_tokens``: how many of the last tokens of the chosen and of the rejected response are its end of turn.
    ``notes``: as of a conversation.
    """

    prompt_tokens: np.ndarray
    chosen_tokens: np.ndarray
    rejected_tokens: np.ndarray
    num_end_tokens: tuple[int, int] = (1, 1)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class EncodedResponse:
    """All before the last assistant turn, generation prompt included, and that turn with its end; int32 [n] each.

    ``num_end_tokens``: how many of the response's last tokens are its end of turn. ``notes``: as of a conversation.
    """

    query_tokens: np.ndarray
    response_tokens: np.ndarray
    num_end_tokens: int = 1
    notes: tuple[str, ...] = ()


type Supervise = Literal["all", "last"]
"""Which of the assistant's turns are learned."""


class ChatEncoder:
    """Encodes with one tokenizer and one template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, seq_length: int | None = None):
        """``seq_length``: the most tokens that a sample may have (a pair: its prompt with either response)."""
        self.template = template
        self.seq_length = seq_length
        self.eos_id: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._special = SpecialTokens(tokenizer)
        self._newline = self._plain("\n")
        # SentencePiece puts a blank before whatever it takes for the start of a text; byte-level BPE does not.
        self._marks_start = self._plain("\nx") != self._newline + self._plain("x")

    def stop_token_ids(self) -> list[int]:
        """Tokens that end a response: the template's end of turn first, then the tokenizer's end of sequence."""
        probe = Conversation((Message("user", "question"), Message("assistant", "answer")))
        (found,) = self.encode_query_responses([probe])
        assert isinstance(found, EncodedResponse), found
        return list(dict.fromkeys([int(found.response_tokens[-1]), self.eos_id]))

    def encode_conversations(
        self, conversations: Sequence[Conversation], supervise: Supervise = "all"
    ) -> list[EncodedConversation | Refusal]:
        """Each conversation up to the assistant's last turn.

        ``supervise``: every turn of the assistant that answers something is learned, or its last one alone.
        Raises ConfigError where the template does not write a turn as its generation prompt announces it.
        """
        return [self._encode_conversation(conversation.messages, supervise) for conversation in conversations]

    def encode_query_responses(self, conversations: Sequence[Conversation]) -> list[EncodedResponse | Refusal]:
        """The last assistant turn of each and all before it; messages after it are left out. Raises as above."""
        return [self._encode_query_response(conversation.messages) for conversation in conversations]

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | Refusal]:
        """The prompt and both responses of each, one message of the assistant each. Raises ConfigError as above."""
        return [self._encode_pair(pair) for pair in pairs]

    def _encode_conversation(self, messages: Sequence[Message], supervise: Supervise) -> EncodedConversation | Refusal:
        messages, turns = _with_known_roles(messages)
        turns = turns if supervise == "all" else turns[-1:]
        if refusal := _refuse(messages, turns):
            return refusal
        parts = self._parts(messages, [place for place in turns if place > 0])
        if isinstance(parts, Refusal):
            return parts
        mask = [np.full(len(ids), index % 2 == 1) for index, ids in enumerate(parts)]
        tokens = _joined(*parts)
        return self._too_long(len(tokens)) or EncodedConversation(tokens, np.concatenate(mask))

    def _encode_query_response(self, messages: Sequence[Message]) -> EncodedResponse | Refusal:
        messages, turns = _with_known_roles(messages)
        turns = turns[-1:]
        if refusal := _refuse(messages, turns):
            return refusal
        parts = self._parts(messages, turns)
        if isinstance(parts, Refusal):
            return parts
        return self._too_long(sum(map(len, parts))) or EncodedResponse(*map(_joined, parts))

    def _encode_pair(self, pair: PreferencePair) -> EncodedPair | Refusal:
        if any(len(answer) != 1 or _with_known_roles(answer)[1] != [0] for answer in (pair.chosen, pair.rejected)):
            return _refusal("several_turns")
        sides = []
        for answer in (pair.chosen, pair.rejected):
            side = self._encode_query_response((*pair.prompt, *answer))
            if isinstance(side, Refusal):
                return side
            sides.append(side)
        chosen, rejected = sides
        return EncodedPair(chosen.query_tokens, chosen.response_tokens, rejected.response_tokens)

    def _too_long(self, num_tokens: int) -> Refusal | None:
        if self.seq_length is None or num_tokens <= self.seq_length:
            return None
        return Refusal("too_long", f"{num_tokens} tokens, the sequence length is {self.seq_length}")

    def _parts(self, messages: Sequence[Message], turns: list[int]) -> list[list[int]] | Refusal:
        """Token ids of context, turn, context, turn, ...: each turn of ``turns`` with all that stands before it."""
        mark = unused_mark(messages)
        marked = [
            replace(
                message,
                role=self._special.broken(message.role, mark),
                content=self._special.broken(message.content, mark),
            )
            for message in messages
        ]
        try:
            texts = self._cut(marked, turns)
        except RenderingError as error:
            return Refusal("template_refuses", f"{self.template.name}: {str(error).partition(chr(10))[0]}")
        parts: list[list[int]] = []
        trailing = ""
        for context, turn in texts:
            parts.append(self._encode(trailing + context, mark, inside=bool(parts)))
            response, trailing = self._response(turn, mark)
            parts.append(response)
        return parts

    def _cut(self, messages: list[Message], turns: list[int]) -> list[tuple[str, str]]:
        """Cut the rendered conversation into (context, turn) for each of ``turns``."""
        beginnings = [(turns[-1] + 1, False)]
        for place in turns:
            beginnings += [(place, True), (place + 1, False)]
        whole, *rendered = render_beginnings(self._tokenizer, self.template, messages, beginnings[:-1])
        cuts, position = [], 0
        for number in range(len(turns)):
            start = self._border(rendered[2 * number], whole, "its generation prompt")
            is_last = number == len(turns) - 1
            end = len(whole) if is_last else self._border(rendered[2 * number + 1], whole, "a turn")
            cuts.append((whole[position:start], whole[start:end]))
            position = end
        return cuts

    def _border(self, beginning: str, whole: str, what: str) -> int:
        """Where the first messages, rendered as ``beginning``, end in the whole conversation."""
        if not whole.startswith(beginning):
            raise ConfigError(
                f"chat template ({self.template.name}): {what} reads differently once more of the conversation "
                "follows, so that responses cannot be told from prompts; name another --chat-template"
            )
        return len(beginning)

    def _response(self, turn: str, mark: str) -> tuple[list[int], str]:
        """Token ids of a turn up to its end-of-turn token, and the text that follows it."""
        found = self._special.find(turn)
        if found and not turn[found[-1][1] :].strip():
            end = found[-1][1]
            return self._encode(turn[:end], mark, inside=True), turn[end:]
        text = turn.rstrip()
        return [*self._encode(text, mark, inside=True), self.eos_id], turn[len(text) :]

    def _encode(self, text: str, mark: str, inside: bool) -> list[int]:
        """Token ids of rendered text: its special tokens as such, those of the messages (broken by ``mark``) as text.

        ``inside``: the text does not begin the sequence.
        """
        ids: list[int] = []
        position = 0
        for start, end, token_id in [*self._special.find(text), (len(text), len(text), None)]:
            if piece := text[position:start].replace(mark, ""):
                ids += self._inside(piece) if inside or position else self._plain(piece)
            if token_id is not None:
                ids.append(token_id)
            position = end
        return ids

    def _inside(self, text: str) -> list[int]:
        """Encode text that stands within a sequence, without the blank that SentencePiece puts at a start.

        A control token before it says that it is no start; where the text itself holds such tokens' strings, which must
        stay text, a newline says so, if it does not merge with what follows.
        """
        if not self._marks_start:
            return self._plain(text)
        if not self._special.find(text):
            return self._tokenizer(self._tokenizer.eos_token + text, add_special_tokens=False)["input_ids"][1:]
        ids, cut = self._plain("\n" + text), len(self._newline)
        return ids[cut:] if ids[:cut] == self._newline else self._plain(text)

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def _with_known_roles(messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
    """The messages with roles as templates name them, and the places of the assistant's."""
    named = [replace(message, role=ROLES.get(message.role, message.role)) for message in messages]
    return named, [place for place, message in enumerate(named) if message.role == "assistant"]


def _refuse(messages: Sequence[Message], turns: list[int]) -> Refusal | None:
    if not turns:
        return _refusal("no_assistant_turn")
    if turns == [0]:
        return _refusal("no_query")
    if any(not messages[place].content.strip() for place in turns):
        return _refusal("empty_response")
    if any(_LONE_SURROGATE.search(text) for message in messages for text in (message.role, message.content)):
        return _refusal("lone_surrogate")
    return None


def _refusal(reason: str) -> Refusal:
    return Refusal(reason, REFUSALS[reason])


def _joined(*parts: list[int]) -> np.ndarray:
    return np.array([token for part in parts for token in part], np.int32)
