"""All that decides the samples of SFT and DPO: two runs with the same recipe train on the same tokens."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from megatron_mixcpt.data.chat.encoding import ChatEncoder, Refusal, Supervise
from megatron_mixcpt.data.datasets.encoded_samples import Sample
from megatron_mixcpt.data.datasets.packed_rows import conversation_sample, num_positions, pair_sample
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.reading_settings import ReadingSettings
from megatron_mixcpt.data.reading.record_settings import KindSettings, described_kind
from megatron_mixcpt.data.records import Conversation, PreferencePair
from megatron_mixcpt.jobs.digests import file_digest

FORMAT = 1
"""Of the files that hold samples: raised where older ones are not to be used any more."""
# They say what is done about bad records, and which files are read, which the files themselves say.
_NOT_OF_SAMPLES = ("--on-bad-record", "--max-rejects", "--include-held-out-splits")


@dataclass(frozen=True)
class SampleRecipe:
    """What the samples are made from."""

    kind: str
    """``sft`` or ``dpo``."""
    records: KindSettings
    reading: ReadingSettings
    sources: tuple[Source, ...]
    tokenizer_digest: str
    encoder: ChatEncoder
    supervise: Supervise = "all"
    """SFT: which of the assistant's turns are learned."""
    source_digests: tuple[str, ...] = ()

    def with_digests(self) -> "SampleRecipe":
        """With the sha256 of every source, which reads all of them. Raises OSError."""
        return replace(self, source_digests=tuple(file_digest(source.path) for source in self.sources))

    @property
    def documents_per_sample(self) -> int:
        """A conversation is one document; a pair has two ends."""
        return 2 if self.kind == "dpo" else 1

    def described(self) -> dict[str, Any]:
        """Plain values; of two recipes the same where the samples are."""
        reading = {key: value for key, value in self.reading.described().items() if key not in _NOT_OF_SAMPLES}
        return {
            "format": FORMAT,
            "kind": self.kind,
            "sources": [
                [digest, source.size, source.format.name, source.compression]
                for source, digest in zip(self.sources, self.source_digests, strict=True)
            ],
            "reading": reading | described_kind(self.kind, self.records),
            "tokenizer": self.tokenizer_digest,
            "template": self.encoder.template.digest,
            "seq_length": self.encoder.seq_length,
            "supervise": self.supervise,
        }

    @cached_property
    def digest(self) -> str:
        """Tells the samples of this recipe from all others, in hexadecimal."""
        content = json.dumps(self.described(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Of the folder that holds the samples."""
        return f"{self.kind}-{self.digest}"

    def encode(self, records: list[Conversation | PreferencePair]) -> list[tuple[Sample, tuple[str, ...]] | Refusal]:
        """Records as samples, each with its notes, or the reason why it gives none."""
        if self.kind == "dpo":
            pairs = self.encoder.encode_pairs(records)  # type: ignore[arg-type] # the reader reads one kind
            return [
                pair if isinstance(pair, Refusal) else self._fitting(pair_sample(pair), pair.notes) for pair in pairs
            ]
        conversations = self.encoder.encode_conversations(records, self.supervise)  # type: ignore[arg-type] # likewise
        return [
            found if isinstance(found, Refusal) else (conversation_sample(found), found.notes)
            for found in conversations
        ]

    def _fitting(self, sample: Sample, notes: tuple[str, ...]) -> tuple[Sample, tuple[str, ...]] | Refusal:
        """Both ends of a pair lie in one row, so that no microbatch has one without the other."""
        length, longest = num_positions(sample), self.encoder.seq_length
        if longest is not None and length > longest:
            return Refusal("too_long", f"{length} tokens of both ends together, the sequence length is {longest}")
        return sample, notes
