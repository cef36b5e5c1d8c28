"""Settings of ``tools/score_alignment.py`` and ``tools/select_alignment.py``; their fields make the flags."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_mixcpt import flags
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_settings import KindSettings, described_kind
from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import setting
from megatron_mixcpt.inference.settings import LayoutSettings, ModelSettings
from megatron_mixcpt.selection.strategies import STRATEGIES

KINDS = ("sft", "dpo")


@dataclass(frozen=True, kw_only=True)
class ScoreLayoutSettings(LayoutSettings):
    """How the model runs (under torchrun; ranks beyond TP x PP are data parallel)."""

    batch_tokens: int = 4096
    """Maximum number of tokens in a batch, padding included."""

    def __post_init__(self) -> None:
        if self.batch_tokens < 2:
            raise ConfigError(f"--batch-tokens {self.batch_tokens}: must be at least 2")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(ModelSettings):
    """What to score, and where to write."""

    sft: tuple[str, ...] = setting(default=(), metavar="PATH")
    """Instruction samples (messages; prompt and response; or instruction, input and output): files and folders."""
    dpo: tuple[str, ...] = setting(default=(), metavar="PATH")
    """Preferences (prompt, chosen and rejected): files and folders."""
    output: Path = setting(metavar="FILE", decides=False)
    """Scores to write, as JSONL."""
    chat_template: str | None = setting(default=None, metavar="NAME|FILE")
    """Chat template: llama3, chatml, zephyr, or a Jinja file. Default: the tokenizer's own."""
    seq_length: int = 2048
    """Maximum length of a query with its response, in tokens; longer samples are not scored."""
    reading: ReadingSettings = setting(default_factory=ReadingSettings)
    layout: ScoreLayoutSettings = setting(default_factory=ScoreLayoutSettings)
    kinds: Mapping[str, KindSettings] = setting(default_factory=dict, is_flag=False)
    """``sft``, ``dpo`` or both: which records, and what their fields are called."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.sft or self.dpo):
            raise ConfigError("nothing to score: give --sft, --dpo or both")
        if self.seq_length < 2:
            raise ConfigError(f"--seq-length {self.seq_length}: must be at least 2")

    def described(self) -> dict[str, Any]:
        """The settings by their flags, to tell one run from another: whatever decides the lines of a part."""
        described = flags.described(self) | self.reading.described()
        for kind, settings in self.kinds.items():
            described |= described_kind(kind, settings)
        return {flag: value for flag, value in described.items() if flag not in ("--on-bad-record", "--max-rejects")}


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """What to select, and where to write."""

    scores: Path = setting(metavar="FILE")
    """Output of tools/score_alignment.py."""
    kind: Literal["sft", "dpo"]
    """Kind of the samples to select."""
    strategy: str = setting(default="high", choices=tuple(STRATEGIES))
    """Samples to select. high: highest FAS; low: lowest FAS; half: one half highest, the other lowest; random: drawn
    with --seed; low-perplexity: lowest perplexity of the response."""
    top_k: int = setting(default=10_000, metavar="K")
    """Number of samples to select."""
    seed: int = 0
    """Seed of --strategy random."""
    output: Path = setting(metavar="FILE")
    """JSONL to write, for --sft or --dpo of training; FILE.report.json and FILE.png are written beside it."""
    rejects: Path | None = setting(default=None, metavar="FILE")
    """Also write a line for each sample that was left out, with the reason."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"--top-k {self.top_k}: must be at least 1")
