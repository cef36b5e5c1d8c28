"""What the user asks of the preprocessing, as far as it decides what is written; the number of workers does not."""

from dataclasses import dataclass, field
from typing import Any

from megatron_mixcpt.data.reading.embedded_templates import TemplateRule, choose_rules
from megatron_mixcpt.data.reading.record_settings import KindSettings, described_kind
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles


@dataclass(frozen=True)
class PreprocessSettings:
    """A whole run."""

    kinds: dict[str, KindSettings]
    tokenizer: TokenizerFiles
    skip_bad_records: bool = False
    """Write bad records to rejects.jsonl.gz and go on, rather than stop at the first."""
    max_rejects: float = 1.0
    """The largest share of bad records with which a run still succeeds."""
    min_tokens: int = 1
    """Leave out samples with fewer tokens, the end of sequence not counted."""
    allow_special_tokens: bool = False
    """Let a special token's string inside a text become that token."""
    keep_duplicates: bool = False
    """Keep samples whose text, but for line ends and outer white space, is that of an earlier sample of their kind."""
    near_duplicates: float | None = None
    """Leave out samples whose runs of words overlap an earlier one's by this share (Jaccard); None: do not look."""
    decontaminate: tuple[str, ...] = ()
    """Test sets; samples that share ``decontaminate_words`` words in a row with them are left out."""
    test_sets_digest: str = ""
    """Of the contents of these files, so that a run resumed after they changed is noticed."""
    decontaminate_words: int = 13
    template_rules: tuple[TemplateRule, ...] = field(default_factory=lambda: choose_rules(None))
    """Chat templates to take off."""

    def described(self) -> dict[str, Any]:
        """The settings by their flags, for the manifest and to tell one run from another."""
        described: dict[str, Any] = {f"--{kind}": list(settings.paths) for kind, settings in self.kinds.items()}
        for kind, settings in self.kinds.items():
            described |= described_kind(kind, settings)
        return described | {
            "--tokenizer": str(self.tokenizer.folder),
            "tokenizer digest": self.tokenizer.digest,
            "--eos-token": self.tokenizer.eos_token,
            "--on-bad-record": "skip" if self.skip_bad_records else "error",
            "--max-rejects": f"{self.max_rejects:.6%}",
            "--min-tokens": self.min_tokens,
            "--allow-special-tokens": self.allow_special_tokens,
            "--keep-duplicates": self.keep_duplicates,
            "--near-duplicates": self.near_duplicates,
            "--decontaminate": list(self.decontaminate),
            "test sets digest": self.test_sets_digest,
            "--decontaminate-words": self.decontaminate_words,
            "template rules": {rule.name: rule.turn for rule in self.template_rules},
        }
