"""One part of the input becomes token and sample files, marked finished once they are whole.

A part leaves, in the run's work folder::

    part-000012.bin      token ids of its samples, each with its end of sequence
    part-000012.samples  per sample: tokens, line, digest of the text (``SAMPLE_TYPE``)
    part-000012.rejects  a JSON line per record that gave no sample
    part-000012.minhash  a signature per sample, where near-duplicates are looked for
    part-000012.json     counts (:class:`PartResult`); written last: a part that has it is finished
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from megatron_mixcpt.data.decontaminate import read_test_sets
from megatron_mixcpt.data.encoding import CheckedEncoder, SpecialStrings
from megatron_mixcpt.data.indexed import token_type_for
from megatron_mixcpt.data.near_duplicates import signature
from megatron_mixcpt.data.parts import Part, Segment
from megatron_mixcpt.data.readers import is_blank, parse, read_blocks, record_fields
from megatron_mixcpt.data.records import BadRecord
from megatron_mixcpt.data.samples import Dropped, Sample, SampleMaker
from megatron_mixcpt.data.settings import PreprocessSettings
from megatron_mixcpt.data.sources import Source
from megatron_mixcpt.errors import DataError

SAMPLE_TYPE = np.dtype([("length", "<i4"), ("line", "<u4"), ("digest", "<u8", 2)])
"""Tokens with the end of sequence; line within the segment, from 1; 128 bits of the sha256 of the normalised text."""

BATCH_CHARACTERS = 1 << 20
BATCH_TEXTS = 1024
NUM_COMPARED_FIRST = 1000
COMPARED_SHARE = 1 / 256
BEFORE_SPECIAL = 100  # characters of a long text that are compared before a special token's string


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
    """Open the files of the part whose files' path is ``base``, without suffix."""
    with (
        open(f"{base}.bin", "wb") as tokens,
        open(f"{base}.samples", "wb") as samples,
        open(f"{base}.minhash", "wb") as signatures,
        open(f"{base}.rejects", "w", encoding="utf-8") as rejects,
    ):
        yield PartFiles(tokens, samples, signatures, rejects)


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


class PartWorker:
    """Turns parts into files; one per process, for it keeps the encoder."""

    def __init__(self, settings: PreprocessSettings, sources: list[Source], folder: Path, use_fast: bool):
        self._settings = settings
        self._sources = sources
        self._folder = folder
        self._encoder = CheckedEncoder(settings.tokenizer, settings.allow_special_tokens, use_fast)
        test_sets = None
        if settings.decontaminate:
            test_sets = read_test_sets(list(settings.decontaminate), settings.decontaminate_words)
        self._makers = {kind: SampleMaker(kind, settings, test_sets) for kind in settings.kinds}
        self._special = SpecialStrings(settings.tokenizer.special_tokens)
        self._token_type = token_type_for(settings.tokenizer.vocab_size)

    def run(self, part: Part) -> PartResult:
        """Process a part, unless it is finished already.

        Raises DataError at the first bad record where the settings say so, and EncoderMismatch.
        """
        done = self._folder / f"{part.name}.json"
        if done.exists():
            return PartResult.read(done)
        result = self._process(part)
        aside = done.with_suffix(".json.tmp")
        aside.write_text(json.dumps(asdict(result)), encoding="utf-8")
        aside.rename(done)
        return result

    def _process(self, part: Part) -> PartResult:
        result = PartResult(encoder=self._encoder.name)
        compared, refused = self._encoder.num_compared, self._encoder.num_refused
        self._makers[part.kind].notes.clear()
        with open_files(self._folder / part.name) as files:
            for index, segment in enumerate(part.segments):
                counts = SegmentCounts()
                result.segments.append(counts)
                for batch in self._batches(index, segment, counts, files.rejects):
                    num_compared = self._encoder.num_compared - compared
                    num_first = max(0, NUM_COMPARED_FIRST - num_compared) if part.is_first else 0
                    result.special_strings += self._write(batch, num_first, files)
        result.num_compared = self._encoder.num_compared - compared
        result.notes = dict(self._makers[part.kind].notes)
        if num_refused := self._encoder.num_refused - refused:
            result.notes["encoded by the Hugging Face tokenizer alone"] = num_refused
        return result

    def _batches(
        self, index: int, segment: Segment, counts: SegmentCounts, rejects: TextIO
    ) -> Iterator[list[tuple[int, Sample]]]:
        """Lists of (line, sample), some megabyte of text each."""
        source = self._sources[segment.source]
        maker = self._makers[source.kind]
        batch, size = [], 0
        for line, content in self._rows(source, segment, counts):
            try:
                sample = maker.make(content)
            except (BadRecord, Dropped) as error:
                self._reject(source, segment, index, line, error, rejects)
                continue
            counts.samples += 1
            if batch and (size + len(sample.text) > BATCH_CHARACTERS or len(batch) >= BATCH_TEXTS):
                yield batch
                batch, size = [], 0
            batch.append((line, sample))
            size += len(sample.text)
        if batch:
            yield batch

    def _rows(self, source: Source, segment: Segment, counts: SegmentCounts) -> Iterator[tuple[int, Any]]:
        """Each record's line and parsed content, or the BadRecord that stands for it."""
        names = self._settings.kinds[source.kind].names
        fields = record_fields(source.kind, names) | self._makers[source.kind].extra_fields
        for rows in read_blocks(source, fields, segment.start, segment.end):
            for index in range(len(rows)):
                row, rows[index] = rows[index], b""  # a row may be 100 MB: nothing else is to hold it
                counts.lines += 1
                if is_blank(source, row):
                    continue
                counts.records += 1
                try:
                    content = parse(source, row)
                except BadRecord as error:
                    content = error
                del row
                yield counts.lines, content

    def _reject(
        self,
        source: Source,
        segment: Segment,
        index: int,
        line: int,
        error: BadRecord | Dropped,
        rejects: TextIO,
    ) -> None:
        if isinstance(error, BadRecord) and not self._settings.skip_bad_records:
            line += lines_before(source, segment)
            way_out = "mend it, or go on without such records with --on-bad-record skip"
            raise DataError(f"{source.path}:{line}: {error.detail}; {way_out}") from error
        record = {"segment": index, "line": line, "reason": error.reason, "detail": error.detail}
        rejects.write(json.dumps(record) + "\n")

    def _write(self, batch: list[tuple[int, Sample]], num_first: int, files: PartFiles) -> int:
        """Encode and write samples, and return how many of them hold a special token's string."""
        texts = [sample.text for _, sample in batch]
        digests = np.frombuffer(b"".join(sample.digest for _, sample in batch), "<u8").reshape(-1, 2)
        special_at = [self._special.find(text) for text in texts]
        self._compare(texts, digests, special_at, num_first)
        table = np.empty(len(batch), SAMPLE_TYPE)
        table["length"] = self._write_tokens(texts, files.tokens)
        table["line"] = [line for line, _ in batch]
        table["digest"] = digests
        table.tofile(files.samples)
        if self._settings.near_duplicates is not None:
            np.array([signature(text) for text in texts]).tofile(files.signatures)
        return sum(place >= 0 for place in special_at)

    def _write_tokens(self, texts: list[str], file: BinaryIO) -> np.ndarray | int:
        """Encode and write texts, each with its end of sequence, and return how many tokens each of them is."""
        eos_id = self._settings.tokenizer.eos_id
        if len(texts) == 1:  # perhaps longer than a batch, so not held whole
            num_tokens = 1
            for ids in self._encoder.encode_in_pieces(texts[0]):
                ids.astype(self._token_type).tofile(file)
                num_tokens += len(ids)
            np.array([eos_id], self._token_type).tofile(file)
            return num_tokens
        ids, lengths = self._encoder.encode(texts)
        np.insert(ids.astype(self._token_type), np.cumsum(lengths), eos_id).tofile(file)
        return lengths + 1

    def _compare(self, texts: list[str], digests: np.ndarray, special_at: list[int], num_first: int) -> None:
        """Check the encoder on the first texts, on all with special tokens' strings, and on a share of the others.

        Which others, and where in a long text, is decided by their content alone.
        """
        chosen = digests[:, 0] < COMPARED_SHARE * 2.0**64
        chosen[:num_first] = True
        starts = (digests[:, 1] >> np.uint64(1)).tolist()
        places = [index for index, place in enumerate(special_at) if place >= 0 or chosen[index]]
        if places:
            at = [
                max(0, special_at[index] - BEFORE_SPECIAL) if special_at[index] >= 0 else starts[index]
                for index in places
            ]
            self._encoder.compare([texts[index] for index in places], at)


def lines_before(source: Source, segment: Segment) -> int:
    """Lines of a source that lie before a segment; for a message to the user, since it reads them again."""
    if segment.start == 0:
        return 0
    if source.format != "jsonl":
        from pyarrow.parquet import read_metadata

        metadata = read_metadata(source.path)
        return sum(metadata.row_group(group).num_rows for group in range(segment.start))
    with open(source.path, "rb") as file:
        left, count = segment.start, 0
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            count += block.count(b"\n")
            left -= len(block)
        return count + (not block.endswith(b"\n"))
