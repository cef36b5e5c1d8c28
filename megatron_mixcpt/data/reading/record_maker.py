"""A row of an input file becomes a record, or the reason why not: preset, filter, embedded chat templates."""

from collections import Counter
from typing import Any

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.reading.embedded_templates import TemplateRule, strip_templates
from megatron_mixcpt.data.reading.presets import preset_for
from megatron_mixcpt.data.reading.record_settings import KindSettings
from megatron_mixcpt.data.reading.row_filter import RowFilter
from megatron_mixcpt.data.reading.rows.make_record import to_record
from megatron_mixcpt.data.records import Conversation, Document, PreferencePair, Record

DROP_REASONS = {
    "equal_sides": "chosen and rejected say the same",
    "filtered": "does not fulfil the filter",
    "not_drawn": "not in the fraction to keep",
    "contaminated": "shares a long run of words with a test set",
    "duplicate": "the text of an earlier sample",
    "near_duplicate": "almost the text of an earlier sample",
    "too_few_tokens": "fewer tokens than --min-tokens",
    "over_max_tokens": "after the last that fits into the tokens asked for",
}
"""Why a good record gives no sample, by the name that rejects and manifest give it."""


class Dropped(Exception):
    """A good record that is left out because the user asked for it: ``reason`` is a key of ``DROP_REASONS``."""

    def __init__(self, reason: str, detail: str | None = None):
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or DROP_REASONS[reason]


class RecordMaker:
    """Makes records of one kind from rows; ``notes`` counts by name what was done to them and what is not used."""

    def __init__(
        self,
        kind: str,
        settings: KindSettings,
        template_rules: tuple[TemplateRule, ...],
        keeps_equal_sides: bool = False,
    ):
        """``keeps_equal_sides``: pairs without a preference are records, too, for a user of the chosen text alone."""
        preset = preset_for(kind, settings.preset)
        condition = settings.filter or preset.filter
        self._kind = kind
        self._names = settings.names
        self._convert = preset.convert
        self._filter = RowFilter(condition, f"--{kind}-filter") if condition else None
        self._rules = template_rules
        self._keeps_equal_sides = keeps_equal_sides
        self.notes: Counter[str] = Counter()
        read = set(preset.reads) | (self._filter.fields if self._filter else set())
        self.extra_fields = frozenset(name.partition(".")[0] for name in read) | read
        """Columns needed beyond those of the record itself."""

    def make(self, content: Any, fills_nulls: bool = False) -> Record:
        """The record of a parsed row. Raises BadRecord for one that cannot be used, Dropped for one not wanted.

        ``fills_nulls``: whether the row is of a table, which has every key of a column in each of its objects.
        """
        if self._convert and isinstance(content, dict):
            content = self._convert(content)
        if self._filter and isinstance(content, dict) and not self._filter(content):
            raise Dropped("filtered")
        notes: list[str] = []
        record = to_record(self._kind, content, self._names, notes, fills_nulls)
        record, of_templates = strip_templates(record, self._rules)
        notes += of_templates
        if isinstance(record, PreferencePair) and record.has_equal_sides:
            if not self._keeps_equal_sides:
                raise Dropped("equal_sides")
            notes.append("chosen and rejected are equal, the text is used")
        if _has_crlf(record):
            notes.append("lines that end in a carriage return, kept as they are")
        if notes:
            self.notes.update(set(notes))  # samples are counted, not what happened within one
        return record


def _has_crlf(record: Record) -> bool:
    if isinstance(record, Document):
        return record.text.has_crlf if isinstance(record.text, LongText) else "\r\n" in record.text
    messages = record.messages if isinstance(record, Conversation) else record.prompt + record.chosen + record.rejected
    return any("\r\n" in message.content for message in messages)
