"""How records are read, the same in preprocessing, scoring, SFT and DPO; the fields make the flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from megatron_mixcpt import flags
from megatron_mixcpt.data.reading.embedded_templates import TemplateRule, choose_rules, read_rules
from megatron_mixcpt.data.records import REJECT_REASONS
from megatron_mixcpt.errors import ConfigError, DataError
from megatron_mixcpt.flags import setting


def read_share(flag: str, text: str) -> float:
    """Read a share, ``1%`` or ``0.01``, as a number from 0 to 1. Raises ConfigError naming ``flag``."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"{flag} {text}: expected a share such as 1% or 0.01")
    return share


def num_bad(rejects: Mapping[str, int]) -> int:
    """How many of the counted rejects are bad records; the others are not wanted."""
    return sum(count for reason, count in rejects.items() if reason in REJECT_REASONS)


def listed_counts(rejects: Mapping[str, int]) -> str:
    """Counts by reason, for a message; empty where there are none."""
    return ", ".join(f"{count} {reason}" for reason, count in rejects.items())


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How records are read."""

    on_bad_record: Literal["error", "skip"] = "error"
    """Stop at the first record that cannot be used, or leave such records out, counted by reason."""
    max_rejects: float = setting(default=1.0, metavar="SHARE", read=read_share)
    """With --on-bad-record skip: fail if more than this share of a kind's records is bad, for example 1%."""
    include_held_out_splits: bool = setting(default=False, decides=False)  # the files that are read decide
    """Of folders, also read files and splits whose names say test, validation, valid, dev or eval."""
    keep_templates: tuple[str, ...] | None = setting(default=None, nargs="*", metavar="NAME", decides=False)
    """Do not remove these chat templates from the text of the data (without a name: none is removed)."""
    template_rules: Path | None = setting(default=None, metavar="FILE", decides=False)
    """JSON file with further chat templates to remove."""

    def __post_init__(self) -> None:
        _ = self.rules  # a rule that cannot be read is refused here rather than in a worker

    @cached_property
    def rules(self) -> tuple[TemplateRule, ...]:
        """Chat templates to remove from the text of the data. Raises ConfigError where they cannot be read."""
        return choose_rules(self.keep_templates, read_rules(self.template_rules) if self.template_rules else ())

    def described(self) -> dict[str, Any]:
        """What decides the records that there are, by flag; the rules by what they are, not by the file's name."""
        return flags.described(self) | {"template rules": {rule.name: rule.turn for rule in self.rules}}

    def check_rejects(self, flag: str, num_records: int, rejects: Mapping[str, int]) -> None:
        """Raise DataError where too many records of ``flag`` (``--sft``) are bad; ``rejects`` counts by reason."""
        bad = num_bad(rejects)
        if bad > self.max_rejects * num_records:
            counted = listed_counts(rejects)
            raise DataError(
                f"{flag}: {bad} of {num_records} records are bad ({bad / num_records:.2%}: {counted}), more "
                f"than --max-rejects {self.max_rejects:.2%}; fix the files, or allow more"
            )
