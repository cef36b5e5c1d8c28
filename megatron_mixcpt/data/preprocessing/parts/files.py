"""What a worker leaves of a part, in the run's work folder::

part-000012.bin      token ids of its samples, each with BOS, if any, and end of sequence
part-000012.samples  per sample: tokens, line, digest of the text (``SAMPLE_TYPE``)
part-000012.rejects  a JSON line per record that gave no sample
part-000012.minhash  a signature per sample, where near-duplicates are looked for
part-000012.json     counts (:class:`PartResult`); written last: a part that has it is finished
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from megatron_mixcpt.jobs.whole_outputs import flush, write_whole

SAMPLE_TYPE = np.dtype([("length", "<i4"), ("line", "<u4"), ("digest", "<u8", 2)])
"""Tokens, BOS and EOS included; line within the segment, from 1; 128 bits of the sha256 of the normalised text."""


@dataclass
class SegmentCounts:
    """What became of a segment's rows."""

    lines: int = 0
    """Lines of the file that it spans, empty ones included."""
    records: int = 0
    samples: int = 0


@dataclass(frozen=True)
class PartFiles:
    """A part's files, open for writing."""

    tokens: BinaryIO
    samples: BinaryIO
    signatures: BinaryIO
    rejects: TextIO


@contextmanager
def open_files(base: Path) -> Iterator[PartFiles]:
    """Open the files of the part whose files' path is ``base``, without suffix; they are on the disk at the end.

    They are written under names of this process and renamed: a machine that was given up may still be writing the
    same part, which then cannot tear what another has finished.
    """
    # On the disk before the part counts as finished: after a power failure the .json file may be there while the
    # content of files written before it is not, and the next run would take the part for complete.
    aside = f"{base}-{socket.gethostname()}-{os.getpid()}"
    with (
        open(f"{aside}.bin", "wb") as tokens,
        open(f"{aside}.samples", "wb") as samples,
        open(f"{aside}.minhash", "wb") as signatures,
        open(f"{aside}.rejects", "w", encoding="utf-8") as rejects,
    ):
        yield PartFiles(tokens, samples, signatures, rejects)
        for file in (tokens, samples, signatures, rejects):
            file.flush()
            os.fsync(file.fileno())
    for suffix in ("bin", "samples", "minhash", "rejects"):
        os.replace(f"{aside}.{suffix}", f"{base}.{suffix}")
    flush(base.parent)


@dataclass
class PartResult:
    """What a finished part says of itself."""

    segments: list[SegmentCounts] = field(default_factory=list)
    special_strings: int = 0
    """Samples in which a special token's string stands as text."""
    encoder: str = ""
    num_compared: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "PartResult":
        """Read a part's .json file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        content["segments"] = [SegmentCounts(**segment) for segment in content["segments"]]
        return cls(**content)

    def write(self, path: Path) -> None:
        """Write a part's .json file, complete or not at all."""
        write_whole(path, json.dumps(asdict(self)))

    @property
    def num_samples(self) -> int:
        """Samples of all segments."""
        return sum(segment.samples for segment in self.segments)
