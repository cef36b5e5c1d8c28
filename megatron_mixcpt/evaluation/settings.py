"""What the user asks of an evaluation, as far as it decides what is measured; the number of ranks does not."""

from dataclasses import dataclass, field
from typing import Any

from megatron_mixcpt.evaluation.perplexity import WindowSettings


@dataclass(frozen=True)
class EvaluateSettings:
    """A whole run."""

    windows: WindowSettings
    text_sets: dict[str, str] = field(default_factory=dict)
    """Name -> file, folder or glob, as given to ``--perplexity``."""
    text_field: str = "text"
    """The field of a record that holds its text."""
    dtype: str = "bfloat16"
    """Of weights and computation."""

    def described(self) -> dict[str, Any]:
        """The settings by their flags, for ``results.json``."""
        return {
            "--perplexity": [f"{name}={path}" for name, path in self.text_sets.items()],
            "--text-field": self.text_field,
            "--sequence-length": self.windows.sequence_length,
            "--stride": self.windows.stride,
            "--batch-tokens": self.windows.batch_tokens,
            "--dtype": self.dtype,
        }
