"""What the user asks of the preprocessing, as far as it decides what is written; the number of workers does not."""

from dataclasses import dataclass, field
from typing import Any

from megatron_mixcpt.data.records import FieldNames
from megatron_mixcpt.data.tokenizer_files import TokenizerFiles


@dataclass(frozen=True)
class KindSettings:
    """What is asked for one kind."""

    paths: tuple[str, ...]
    """Files, folders and globs, as given."""
    names: FieldNames = field(default_factory=FieldNames)


@dataclass(frozen=True)
class PreprocessSettings:
    """A whole run."""

    kinds: dict[str, KindSettings]
    tokenizer: TokenizerFiles
    skip_bad_records: bool = False
    """Write bad records to rejects.jsonl.gz and go on, rather than stop at the first."""
    max_rejects: float = 1.0
    """The largest share of bad records with which a run still succeeds."""
    allow_special_tokens: bool = False
    """Let a special token's string inside a text become that token."""
    keep_duplicates: bool = False
    """Keep samples whose text, but for line ends and outer white space, is that of an earlier sample of their kind."""

    def described(self) -> dict[str, Any]:
        """The settings by their flags, for the manifest; only those that differ from their defaults."""
        described: dict[str, Any] = {f"--{kind}": list(settings.paths) for kind, settings in self.kinds.items()}
        described["--tokenizer"] = str(self.tokenizer.folder)
        described["tokenizer digest"] = self.tokenizer.digest
        described["--eos-token"] = self.tokenizer.eos_token
        described["--on-bad-record"] = "skip" if self.skip_bad_records else "error"
        described["--max-rejects"] = f"{self.max_rejects:.6%}"
        described["--allow-special-tokens"] = self.allow_special_tokens
        described["--keep-duplicates"] = self.keep_duplicates
        for kind, settings in self.kinds.items():
            described |= _described_names(kind, settings.names)
        return described


def _described_names(kind: str, names: FieldNames) -> dict[str, str]:
    return {
        f"--{kind}-{name}-field": value for name, value in vars(names).items() if value != getattr(FieldNames, name)
    }
