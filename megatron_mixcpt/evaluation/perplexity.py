"""Perplexity and bits per byte of a model on a set of texts of any length, through the engine at any layout.

Every document starts as documents do in training: after the BOS token where the tokenizer puts one before a text, else
after the EOS token (``data/tokens/document_start.py``). It is cut into windows that overlap: the model
reads at most ``sequence_length`` tokens, and every window after the first scores the ``stride`` tokens that come next.
Each token of a text is scored exactly once, given all that stands before it in the document or at least
``sequence_length - stride + 1`` tokens of it. The EOS after a document is not scored: it has no bytes, so that bits per
byte compare models of different tokenizers. A special token's string in a text is text, as in training.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from megatron_mixcpt.data.reading.field_names import FieldNames
from megatron_mixcpt.data.reading.readers import read_records
from megatron_mixcpt.data.records import Document
from megatron_mixcpt.data.tokens.document_start import document_start_id
from megatron_mixcpt.errors import CheckpointError, DataError
from megatron_mixcpt.evaluation.settings import PerplexitySettings
from megatron_mixcpt.inference.batches import ScoredSequence
from megatron_mixcpt.inference.runner import ForwardRunner
from megatron_mixcpt.jobs.progress import LOG_SECONDS

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerBase

PART_TOKENS = 1 << 18
"""Tokens that are held at once, and that batches are formed from."""


@dataclass(frozen=True)
class Perplexity:
    """The figures of a model on a set of texts."""

    path: str
    documents: int
    tokens: int
    """Scored tokens."""
    bytes: int
    """Of the texts in UTF-8."""
    nats: float
    """The sum of the tokens' negative log-likelihoods."""

    @property
    def perplexity(self) -> float:
        """Per token: compares models of one tokenizer only."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Of the texts in UTF-8: compares models of any tokenizers."""
        return self.nats / math.log(2) / self.bytes


def cut_windows(tokens: np.ndarray, sequence_length: int, stride: int) -> Iterator[ScoredSequence]:
    """Windows over a document's ``tokens``, int32 [n + 1], of which the first (BOS or EOS) is context and never scored.

    Of 6 tokens a to f, with 4 read at once and 2 scored at a time (scored is what stands right of the bar)::

        EOS | a b c d
          b c d | e f
    """
    start = num_scored = 0
    while num_scored < len(tokens) - 1:
        end = min(start + sequence_length, len(tokens) - 1)
        yield ScoredSequence(tokens[start : end + 1], end - num_scored)
        num_scored = end
        start += stride


class TextSet:
    """The documents of ``--perplexity NAME=PATH``, encoded and counted as they are read."""

    def __init__(
        self, name: str, path: str, text_field: str, tokenizer: "PreTrainedTokenizerBase", *, bos: bool = True
    ):
        """``bos``: whether documents begin with the BOS token that the tokenizer puts before a text, if it does."""
        self.name = name
        self.path = path
        self.num_documents = self.num_tokens = self.num_bytes = 0
        self._names = FieldNames(text=text_field)
        self._tokenizer = tokenizer
        self._start_id = document_start_id(tokenizer, bos=bos)

    def parts(self, settings: PerplexitySettings) -> Iterator[list[ScoredSequence]]:
        """Windows of all documents, some ``PART_TOKENS`` tokens at a time.

        Raises DataError, naming file and line, where a record cannot be read, and where there is no text at all.
        """
        part: list[ScoredSequence] = []
        part_tokens = 0
        for record in read_records("cpt", [self.path], self._names, flag="perplexity"):
            assert isinstance(record, Document) and isinstance(record.text, str)
            for window in cut_windows(self._encode(record.text), settings.sequence_length, settings.tokens_per_window):
                part.append(window)
                part_tokens += window.num_inputs
                if part_tokens >= PART_TOKENS:
                    yield part
                    part, part_tokens = [], 0
        if not self.num_tokens:
            raise DataError(f"--perplexity {self.name}={self.path}: holds no text; give other files")
        if part:
            yield part

    def _encode(self, text: str) -> np.ndarray:
        """What a document starts after and the text's tokens, int32; counts them."""
        self.num_documents += 1
        try:
            self.num_bytes += len(text.encode())
        except UnicodeEncodeError as error:
            where = f"--perplexity {self.name}={self.path}: document {self.num_documents}"
            raise DataError(
                f"{where} holds half of a surrogate pair, which is not text; correct or remove the document"
            ) from error
        encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        tokens = np.array([self._start_id, *encoded["input_ids"]], np.int32)
        self.num_tokens += len(tokens) - 1
        return tokens


def measure_perplexity(runner: ForwardRunner, texts: TextSet, settings: PerplexitySettings) -> Perplexity:
    """Score every token of ``texts``; all ranks call it, and all get the figures.

    Raises:
        DataError: a record cannot be read, or there is no text.
        CheckpointError: the model's log-probabilities are not finite.
    """
    nats = 0.0
    quiet = {"disable": not runner.is_writer, "mininterval": 0.5 if sys.stderr.isatty() else LOG_SECONDS}
    with tqdm(desc=f"perplexity {texts.name}", unit=" windows", unit_scale=True, **quiet) as progress:
        for part in texts.parts(settings):
            nats -= runner.sequence_log_probs(part, settings.batch_tokens, progress.update).sum().item()
    if not math.isfinite(nats):
        raise CheckpointError(
            f"--perplexity {texts.name}={texts.path}: the model's log-probabilities are not finite; "
            "its weights are damaged, or overflow in this --dtype"
        )
    return Perplexity(texts.path, texts.num_documents, texts.num_tokens, texts.num_bytes, nats)
