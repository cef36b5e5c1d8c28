"""Conversations and preference pairs become token ids in a chat template, with what is supervised told from the rest.

Supervised is every assistant turn: its text and its end-of-turn token, so that the model learns to stop. Prompts, role
headers and whatever follows the end of a turn (ChatML's newline) are context, and so are turns that the record excepts.
Where the template writes no special token at the end of a turn, the tokenizer's end of sequence is put there. What
follows the last turn that is learned is left out.

A turn is encoded apart from what stands before it, so that no byte pair merges across the border: the model generates
from a prompt that was encoded alone. SFT, DPO and scoring cut a conversation at the same borders.

A sample that cannot be used gives a :class:`Refusal`, not an exception. Many are encoded at once: one round trip to the
process that renders, one call of the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_mixcpt.data.chat.dialogue import dialogue_of
from megatron_mixcpt.data.chat.dialogue_encoder import DialogueEncoder, EncodedDialogue, Group
from megatron_mixcpt.data.chat.refusals import NOTES, REFUSALS, Refusal, refusal
from megatron_mixcpt.data.chat.templates import ChatTemplate
from megatron_mixcpt.data.records import Conversation, Message, PreferencePair
from megatron_mixcpt.errors import ConfigError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

__all__ = ["NOTES", "REFUSALS", "ChatEncoder", "EncodedConversation", "EncodedPair", "EncodedResponse", "Refusal"]

type Supervise = Literal["all", "last"]
"""Which of the assistant's turns are learned."""


@dataclass(frozen=True, eq=False)
class EncodedConversation:
    """``tokens``: int32 [n]; ``loss_mask``: bool [n], True where the token is to be predicted. The first never is.

    ``notes``: keys of ``NOTES``, what happened to the sample, to be counted.
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
    """All before the last turn that is learned, generation prompt included, and that turn with its end; int32 [n] each.

    An empty block of reasoning that the template puts before an answer by itself is part of the query.
    ``num_end_tokens``: how many of the response's last tokens are its end of turn. ``notes``: as of a conversation.
    """

    query_tokens: np.ndarray
    response_tokens: np.ndarray
    num_end_tokens: int = 1
    notes: tuple[str, ...] = ()


class ChatEncoder:
    """Encodes with one tokenizer and one template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate, seq_length: int | None = None):
        """``seq_length``: the most tokens that a sample may have (a pair: its prompt with either response)."""
        self.template = template
        self.seq_length = seq_length
        self.eos_id: int = tokenizer.eos_token_id
        self._encoder = DialogueEncoder(tokenizer, template)

    def stop_token_ids(self) -> list[int]:
        """Tokens that end a response: the template's end of turn first, then the tokenizer's end of sequence.

        Raises ConfigError where the template's responses cannot be told from prompts.
        """
        probe = Conversation((Message("user", "question"), Message("assistant", "answer")))
        (found,) = self.encode_query_responses([probe])
        if isinstance(found, Refusal):
            raise ConfigError(f"chat template ({self.template.name}): {found.detail}; name another --chat-template")
        return list(dict.fromkeys([int(found.response_tokens[-1]), self.eos_id]))

    def encode_conversations(
        self, conversations: Sequence[Conversation], supervise: Supervise = "all"
    ) -> list[EncodedConversation | Refusal]:
        """Each conversation up to the last turn that is learned.

        ``supervise``: all turns of the assistant that answer something and that the record does not except are
        learned, or the last of them alone. Where the template rewrites earlier turns, the last alone, with a note.
        """
        found = self._encoder.encode([_group(one) for one in conversations])
        return [each if isinstance(each, Refusal) else self._conversation(each[0], supervise) for each in found]

    def encode_query_responses(self, conversations: Sequence[Conversation]) -> list[EncodedResponse | Refusal]:
        """The last turn of each that is learned, and all before it."""
        found = self._encoder.encode([_group(one) for one in conversations])
        return [each if isinstance(each, Refusal) else self._query_response(each[0]) for each in found]

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | Refusal]:
        """The prompt and both responses of each, one message of the assistant each."""
        found = self._encoder.encode([_group_of_pair(pair) for pair in pairs])
        return [each if isinstance(each, Refusal) else self._pair(*each) for each in found]

    def _conversation(self, found: EncodedDialogue, supervise: Supervise) -> EncodedConversation | Refusal:
        parts: list[list[int]] = []
        mask: list[bool] = []
        for number, turn in enumerate(found.turns, start=1):
            is_learned = supervise == "all" or number == len(found.turns)
            parts += turn[:3]
            mask += [False, is_learned, is_learned]
        tokens = _array(*parts)
        loss_mask = np.repeat(mask, list(map(len, parts)))
        rewritten = ("last_turn_only",) if found.is_rewritten and supervise == "all" else ()
        return self._too_long(len(tokens)) or EncodedConversation(tokens, loss_mask, rewritten + found.notes)

    def _query_response(self, found: EncodedDialogue) -> EncodedResponse | Refusal:
        last = found.turns[-1]
        query, response = _array(found.query, last.lead), _array(last.response)
        too_long = self._too_long(len(query) + len(response))
        return too_long or EncodedResponse(query, response, last.num_end_tokens, found.notes)

    def _pair(self, chosen: EncodedDialogue, rejected: EncodedDialogue) -> EncodedPair | Refusal:
        if chosen.query != rejected.query:
            return refusal("template_rewrites")
        ends = chosen.turns[-1], rejected.turns[-1]
        shared = ends[0].lead if ends[0].lead == ends[1].lead else []
        prompt = _array(chosen.query, shared)
        sides = [_array(end.lead[len(shared) :], end.response) for end in ends]
        num_end_tokens = ends[0].num_end_tokens, ends[1].num_end_tokens
        notes = tuple(dict.fromkeys(chosen.notes + rejected.notes))
        too_long = self._too_long(len(prompt) + max(map(len, sides)))
        return too_long or EncodedPair(prompt, sides[0], sides[1], num_end_tokens, notes)

    def _too_long(self, num_tokens: int) -> Refusal | None:
        if self.seq_length is None or num_tokens <= self.seq_length:
            return None
        return Refusal("too_long", f"{num_tokens} tokens, the sequence length is {self.seq_length}")


def _group(conversation: Conversation) -> Group | Refusal:
    dialogue = dialogue_of(conversation.messages, conversation.tools)
    return dialogue if isinstance(dialogue, Refusal) else (dialogue,)


def _group_of_pair(pair: PreferencePair) -> Group | Refusal:
    dialogues = []
    for answer in (pair.chosen, pair.rejected):
        if [message.role for message in answer] != ["assistant"]:
            return refusal("several_turns")
        if not answer[0].is_supervised:
            return refusal("not_supervised")
        dialogue = dialogue_of((*pair.prompt, *answer), pair.tools)
        if isinstance(dialogue, Refusal):
            return dialogue
        dialogues.append(dialogue)
    return tuple(dialogues)


def _array(*parts: list[int]) -> np.ndarray:
    return np.concatenate([np.array(part, np.int32) for part in parts])
