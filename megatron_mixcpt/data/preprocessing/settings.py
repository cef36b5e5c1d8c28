"""What the user asks of the preprocessing, as far as it decides what is written; the number of workers does not."""

from dataclasses import dataclass
from typing import Any

from megatron_mixcpt import flags
from megatron_mixcpt.data.dataset_names import kind_of, source_of
from megatron_mixcpt.data.preprocessing.decontaminate import LEAST_WORDS
from megatron_mixcpt.data.preprocessing.named_sources import as_given
from megatron_mixcpt.data.preprocessing.near_duplicates import check_available
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings, read_share
from megatron_mixcpt.data.reading.record_settings import KindSettings, described_kind
from megatron_mixcpt.data.tokens.tokenizer_files import TokenizerFiles
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting

LEAST_SIMILARITY = 0.3


@dataclass(frozen=True)
class KeptKindSettings(KindSettings):
    """Which records of a kind are used, and how many of them are kept."""

    fraction: float = setting(default=1.0, metavar="SHARE", read=read_share)
    """Keep this share of the records, drawn by their content."""
    max_tokens: int | None = None
    """Keep the first samples that together have at most N tokens; of each named source."""


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which samples are written."""

    bos: bool = True
    """Begin each sample with the BOS token of a tokenizer that puts one before a text, as Llama 3's does; other
    tokenizers have none to write."""
    allow_special_tokens: bool = False
    """Let the string of a special token in a text become that token; otherwise it stays ordinary text."""
    keep_duplicates: bool = False
    """Keep samples whose text equals that of an earlier sample of the kind, but for line ends and outer white space."""
    near_duplicates: float | None = setting(default=None, metavar="SHARE", read=read_share, nargs="?", const=0.8)
    """Leave out samples whose runs of five words overlap those of an earlier sample by this share (80% if no value is
    given)."""
    min_tokens: int = 1
    """Leave out samples with fewer tokens, the end of sequence not counted."""
    decontaminate: tuple[str, ...] = setting(default=(), metavar="PATH")
    """Test sets; leave out samples that share a long run of words with them."""
    decontaminate_words: int = 13
    """Length of such a run, in words."""

    def __post_init__(self) -> None:
        if self.min_tokens < 1:
            raise ConfigError(f"--min-tokens {self.min_tokens}: must be at least 1")
        if self.decontaminate_words < LEAST_WORDS:
            raise ConfigError(f"--decontaminate-words {self.decontaminate_words}: must be at least {LEAST_WORDS}")
        if self.near_duplicates is not None:
            check_available()
            if self.near_duplicates < LEAST_SIMILARITY:
                raise ConfigError(
                    f"--near-duplicates {self.near_duplicates:.0%}: below {LEAST_SIMILARITY:.0%} unrelated texts are "
                    "found; choose a larger share"
                )


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings(SampleSettings):
    """Everything that decides what a run writes."""

    datasets: dict[str, KeptKindSettings] = setting(is_flag=False)
    """By dataset (a kind, or a named source of one), in the order in which they are written."""
    tokenizer: TokenizerFiles = setting(is_flag=False)
    test_sets_digest: str = setting(default="", is_flag=False)
    """Of the contents of the test sets, so that a run resumed after they changed is noticed."""
    reading: ReadingSettings = setting(default=ReadingSettings(), is_flag=False)

    @property
    def bos_id(self) -> int | None:
        """What begins each sample; None: nothing does."""
        return self.tokenizer.bos_id if self.bos else None

    @property
    def num_frame_tokens(self) -> int:
        """The tokens of a sample that are not its text's: BOS, if any, and the end of sequence."""
        return 1 if self.bos_id is None else 2

    def described(self) -> dict[str, Any]:
        """The settings by their flags, for the manifest and to tell one run from another."""
        described: dict[str, Any] = {f"--{kind_of(name)}": [] for name in self.datasets}
        for name, settings in self.datasets.items():
            described[f"--{kind_of(name)}"] += as_given(source_of(name), settings.paths)
        for name, settings in self.datasets.items():
            described |= described_kind(kind_of(name), settings)
        return (
            described
            | {
                "--tokenizer": str(self.tokenizer.folder),
                "tokenizer digest": self.tokenizer.digest,
                "--eos-token": self.tokenizer.eos_token,
            }
            | self.reading.described()
            | flags.described(self)
            | {"test sets digest": self.test_sets_digest}
        )
