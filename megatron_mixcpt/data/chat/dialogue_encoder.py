"""Dialogues become token ids, turn by turn: rendered together, cut at the borders of their turns, encoded together."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from megatron_mixcpt.data.chat.dialogue import Dialogue, TemplateInput, mark_for
from megatron_mixcpt.data.chat.pieces import Piece, PieceEncoder
from megatron_mixcpt.data.chat.refusals import Refusal, refusal
from megatron_mixcpt.data.chat.renderer import Asked, RenderingError
from megatron_mixcpt.data.chat.special_tokens import SpecialTokens
from megatron_mixcpt.data.chat.templates import ChatTemplate, render_all
from megatron_mixcpt.data.chat.turns import Turn, cut, find_borders, wanted_beginnings
from megatron_mixcpt.data.chat.written import what_is_lost

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

type Group = tuple[Dialogue, ...]
"""Dialogues that differ in their last message alone: one conversation, or the two ends of a pair."""


class TurnIds(NamedTuple):
    """Token ids of a turn that is learned, see :class:`~megatron_mixcpt.data.chat.turns.Turn`."""

    context: list[int]
    lead: list[int]
    response: list[int]
    """With its end of turn."""
    num_end_tokens: int


class EncodedDialogue(NamedTuple):
    """A dialogue as token ids."""

    turns: list[TurnIds]
    is_rewritten: bool
    """Whether the template rewrites turns before the last, so that ``turns`` holds that one alone."""
    notes: tuple[str, ...]

    @property
    def query(self) -> list[int]:
        """All before the last turn, generation prompt included."""
        *earlier, last = self.turns
        return [token for turn in earlier for part in turn[:3] for token in part] + last.context


class _Cut(NamedTuple):
    """A rendered dialogue, cut."""

    turns: list[Turn]
    is_rewritten: bool
    mark: str
    notes: tuple[str, ...]


class DialogueEncoder:
    """Encodes with one tokenizer and one template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate):
        self._tokenizer = tokenizer
        self._template = template
        self._special = SpecialTokens(tokenizer)
        self._pieces = PieceEncoder(tokenizer, self._special)

    def encode(self, groups: Sequence[Group | Refusal]) -> list[list[EncodedDialogue] | Refusal]:
        """The dialogues of each group, or why it is refused. What a group shares is rendered and encoded once."""
        cuts = self._cut(groups)
        pieces = [piece for sides in cuts if isinstance(sides, list) for side in sides for piece in self._texts(side)]
        ids = iter(self._pieces.encode(pieces))
        return [
            sides
            if isinstance(sides, Refusal)
            else [
                EncodedDialogue([self._ids(turn, ids) for turn in side.turns], side.is_rewritten, side.notes)
                for side in sides
            ]
            for sides in cuts
        ]

    def _ids(self, turn: Turn, ids: Iterator[list[int]]) -> TurnIds:
        context, lead, response = next(ids), next(ids), next(ids)
        end = [] if turn.num_end_tokens else [self._tokenizer.eos_token_id]
        return TurnIds(context, lead, response + end, turn.num_end_tokens or 1)

    def _texts(self, side: _Cut) -> Iterator[Piece]:
        """Context, lead and response of each turn."""
        follows = "nothing"
        for turn in side.turns:
            for text in turn[:3]:
                yield Piece(text, side.mark, follows)
                if text:
                    follows = "token" if self._special.at_end(text)[0] == len(text) else "text"
            follows = "token"  # the end of the turn

    def _cut(self, groups: Sequence[Group | Refusal]) -> list[list[_Cut] | Refusal]:
        marks = ["" if isinstance(group, Refusal) else mark_for(group, self._special) for group in groups]
        asked = [
            one
            for group, mark in zip(groups, marks, strict=True)
            if not isinstance(group, Refusal)
            for one in _asked(group, TemplateInput(self._special, mark))
        ]
        rendered = iter(render_all(self._tokenizer, self._template, asked))
        return [
            group if isinstance(group, Refusal) else self._cut_group(group, mark, [next(rendered) for _ in group])
            for group, mark in zip(groups, marks, strict=True)
        ]

    def _cut_group(
        self, group: Group, mark: str, rendered: Sequence[list[str] | RenderingError]
    ) -> list[_Cut] | Refusal:
        cuts: list[_Cut] = []
        given = TemplateInput(self._special, mark)
        beginnings: list[str] = []
        for dialogue, texts in zip(group, rendered, strict=True):
            if isinstance(texts, RenderingError):
                return Refusal("template_refuses", f"{self._template.name}: {str(texts).partition(chr(10))[0]}")
            whole, beginnings = texts[0], texts[1:] or beginnings
            borders = find_borders(whole, beginnings)
            if borders is None:
                return refusal("template_rewrites")
            notes = what_is_lost(dialogue, given, whole)
            if isinstance(notes, Refusal):
                return notes
            contents = [given.value(dialogue.messages[place].content) for place in dialogue.turns]
            turns = cut(whole, borders, contents, self._special)
            cuts.append(_Cut(turns, len(turns) < len(dialogue.turns), mark, notes))
        return cuts


def _asked(group: Group, given: TemplateInput) -> Iterator[Asked]:
    """What to render of a group: the borders of the first dialogue's turns are those of all."""
    for number, dialogue in enumerate(group):
        wanted = wanted_beginnings(dialogue.turns)
        yield Asked(given.messages(dialogue.messages), given.tools(dialogue.tools), wanted[:1] if number else wanted)
