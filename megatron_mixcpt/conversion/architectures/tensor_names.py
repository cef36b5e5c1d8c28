"""How files name the tensors of a language model, which text families call ``model.`` and ``lm_head.``."""

from dataclasses import dataclass, fields, replace
from typing import Any

from megatron_mixcpt.conversion.architectures.rules import Rule


@dataclass(frozen=True)
class TensorNames:
    """How the files name the language model's tensors."""

    model: str = "model."
    """In the place of ``model.``."""
    head: str = "lm_head."
    """In the place of ``lm_head.``."""

    def of(self, name: str) -> str:
        """The name in the files of a tensor that the text family calls ``name``."""
        for own, theirs in (("model.", self.model), ("lm_head.", self.head)):
            if name.startswith(own):
                return theirs + name.removeprefix(own)
        return name

    def renamed(self, rule: Rule) -> Rule:
        """The same rule for the names in the files."""
        values = {field.name: getattr(rule, field.name) for field in fields(rule) if field.name != "engine"}
        texts: dict[str, Any] = {key: self.of(value) for key, value in values.items() if isinstance(value, str)}
        return replace(rule, **texts)


PLAIN = TensorNames()
OUTSIDE = TensorNames("language_model.model.", "language_model.lm_head.")
"""The language model beside the vision tower: Gemma 3, Mistral Small."""
INSIDE = TensorNames("model.language_model.")
"""Both inside ``model``: Qwen3.5, and what transformers has in memory."""
