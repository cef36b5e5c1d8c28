"""What the user asks of the scoring, as far as it decides the scores; the number of ranks does not."""

from dataclasses import dataclass
from typing import Any

from megatron_mixcpt.data.reading.embedded_templates import TemplateRule
from megatron_mixcpt.data.reading.record_settings import KindSettings, described_kind


@dataclass(frozen=True)
class ScoreSettings:
    """A whole run."""

    kinds: dict[str, KindSettings]
    """``sft``, ``dpo`` or both."""
    template_rules: tuple[TemplateRule, ...]
    """Chat templates to take off the data's own text."""
    chat_template: str | None = None
    """A built-in name or a file; None for the tokenizer's own."""
    seq_length: int = 2048
    """The most tokens of a query with its response."""
    dtype: str = "bfloat16"
    """Of weights and computation."""
    batch_tokens: int = 4096
    """Places in a batch, padding included."""

    def described(self) -> dict[str, Any]:
        """The settings by their flags, to tell one run from another."""
        described: dict[str, Any] = {f"--{kind}": list(settings.paths) for kind, settings in self.kinds.items()}
        for kind, settings in self.kinds.items():
            described |= described_kind(kind, settings)
        return described | {
            "--chat-template": self.chat_template,
            "--seq-length": self.seq_length,
            "--dtype": self.dtype,
            "--batch-tokens": self.batch_tokens,
            "template rules": {rule.name: rule.turn for rule in self.template_rules},
        }
