"""One part of the input becomes token and sample files, marked finished once they are complete (``files.py``)."""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_mixcpt.data.long_text import LongText
from megatron_mixcpt.data.mixture.indexed import token_type_for
from megatron_mixcpt.data.preprocessing.near_duplicates import signature
from megatron_mixcpt.data.preprocessing.parts.files import SAMPLE_TYPE, PartFiles, PartResult, open_files
from megatron_mixcpt.data.preprocessing.parts.reader import Batch, PartReader
from megatron_mixcpt.data.preprocessing.settings import PreprocessSettings
from megatron_mixcpt.data.reading.input_format import Source
from megatron_mixcpt.data.reading.parts import Part
from megatron_mixcpt.data.tokens.encoder import PIECE_CHARACTERS, CheckedEncoder, SpecialStrings
from megatron_mixcpt.jobs.digests import file_digest

NUM_COMPARED_FIRST = 1000
COMPARED_SHARE = 1 / 256
BEFORE_SPECIAL = 100  # characters of a long text that are compared before a special token's string


class PartWorker:
    """Turns parts into files; one per process, for it keeps the encoder."""

    def __init__(self, settings: PreprocessSettings, sources: list[Source], folder: Path, use_fast: bool):
        self._settings = settings
        self._sources = sources
        self._folder = folder
        self._reader = PartReader(settings, sources)
        self._encoder = CheckedEncoder(settings.tokenizer, settings.allow_special_tokens, use_fast)
        self._special = SpecialStrings(settings.tokenizer.special_tokens)
        self._token_type = token_type_for(settings.tokenizer.vocab_size)
        self._start = [] if settings.bos_id is None else [settings.bos_id]

    def run(self, part: Part) -> PartResult:
        """Process a part, unless it is finished already.

        Raises DataError at the first bad record where the settings say so, and EncoderMismatch.
        """
        done = self._folder / f"{part.name}.json"
        if done.exists():
            return PartResult.read(done)
        result = self._process(part)
        result.write(done)
        return result

    def _process(self, part: Part) -> PartResult:
        result = PartResult(encoder=self._encoder.name)
        compared, refused = self._encoder.num_compared, self._encoder.num_refused
        self._reader.take_notes(part.dataset)
        num_first = NUM_COMPARED_FIRST if part.is_first else 0
        with open_files(self._folder / part.name) as files:
            for batch in self._reader.batches(part, result.segments, files.rejects):
                result.special_strings += self._write(batch, num_first, files)
                num_first = max(0, num_first - len(batch))
                batch.clear()
        result.num_compared = self._encoder.num_compared - compared
        result.notes = self._reader.take_notes(part.dataset)
        if num_refused := self._encoder.num_refused - refused:
            result.notes["encoded in part by the Hugging Face tokenizer"] = num_refused
        return result

    def digests(self, first: int, last: int) -> list[str]:
        """The sha256 of the sources from ``first`` to before ``last``."""
        return [file_digest(source.path) for source in self._sources[first:last]]

    def compare_first(self, part: Part, num_samples: int) -> int:
        """Compare the encoders on the first samples of a part, less those that :meth:`run` compared.

        Returns how many these are. Raises EncoderMismatch.
        """
        before = self._encoder.num_compared
        with open(os.devnull, "w", encoding="utf-8") as rejects:
            for batch in self._reader.batches(part, [], rejects):
                texts, digests, special_at = self._looked_at(batch[:num_samples])
                self._compare(texts, digests, special_at, ~_drawn(digests, special_at))
                num_samples -= len(batch)
                if num_samples <= 0:
                    break
        return self._encoder.num_compared - before

    def _looked_at(self, batch: Batch) -> tuple[list[str | LongText], np.ndarray, np.ndarray]:
        """Texts, their digests (uint64 ``[n, 2]``), and where a special token's string stands in each (-1: nowhere)."""
        texts = [sample.text for _, sample in batch]
        digests = np.frombuffer(b"".join(sample.digest for _, sample in batch), "<u8").reshape(-1, 2)
        return texts, digests, np.array([self._special.find(text) for text in texts])

    def _write(self, batch: Batch, num_first: int, files: PartFiles) -> int:
        """Encode and write samples, and return how many of them hold a special token's string."""
        texts, digests, special_at = self._looked_at(batch)
        chosen = _drawn(digests, special_at)
        chosen[:num_first] = True
        self._compare(texts, digests, special_at, chosen)
        table = np.empty(len(batch), SAMPLE_TYPE)
        table["length"] = self._write_tokens(texts, files.tokens)
        table["line"] = [line for line, _ in batch]
        table["digest"] = digests
        files.samples.write(table.tobytes())
        if self._settings.near_duplicates is not None:
            np.array([signature(text) for text in texts]).tofile(files.signatures)
        return int(np.count_nonzero(special_at >= 0))

    def _write_tokens(self, texts: list[str | LongText], file: BinaryIO) -> list[int]:
        """Encode and write texts, each in its frame (BOS, if any, and EOS), and return how many tokens each is."""
        last = texts[-1]
        short = [text for text in texts if isinstance(text, str)]
        if isinstance(last, str):
            if len(last) <= PIECE_CHARACTERS:
                return self._write_short(short, file)
            short.pop()
        lengths = self._write_short(short, file) if short else []
        num_tokens = self._settings.num_frame_tokens
        file.write(np.array(self._start, self._token_type).data)
        for ids in self._encoder.encode_long(last):
            file.write(ids.astype(self._token_type).data)
            num_tokens += len(ids)
        file.write(np.array([self._settings.tokenizer.eos_id], self._token_type).data)
        return [*lengths, num_tokens]

    def _write_short(self, texts: list[str], file: BinaryIO) -> list[int]:
        ids, lengths = self._encoder.encode(texts)
        frame = self._settings.num_frame_tokens
        tokens = np.empty(len(ids) + frame * len(texts), self._token_type)
        start = place = 0
        for end in np.cumsum(lengths).tolist():
            first, last = place + frame - 1, place + frame - 1 + end - start
            tokens[place:first] = self._start
            tokens[first:last] = ids[start:end]
            tokens[last] = self._settings.tokenizer.eos_id
            start, place = end, last + 1
        file.write(tokens.data)
        return (lengths + frame).tolist()

    def _compare(
        self, texts: list[str | LongText], digests: np.ndarray, special_at: np.ndarray, chosen: np.ndarray
    ) -> None:
        """Check the encoder on the chosen texts; where in a long one is decided by its content alone."""
        places = np.flatnonzero(chosen)
        if len(places) == 0:
            return
        anywhere = (digests[:, 1] >> np.uint64(1)).astype(np.int64)
        starts = np.where(special_at < 0, anywhere, np.maximum(0, special_at - BEFORE_SPECIAL))
        self._encoder.compare([texts[place] for place in places], starts[places].tolist())


def _drawn(digests: np.ndarray, special_at: np.ndarray) -> np.ndarray:
    """The texts that are compared wherever they stand: all with a special token's string and a share of the others."""
    return (special_at >= 0) | (digests[:, 0] < COMPARED_SHARE * 2.0**64)
