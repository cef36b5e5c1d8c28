"""Microbatches of packed rows for the data loader: conversations (SFT) and preference pairs (DPO).

Every document of a sample has its own positions and attends to nothing outside it. What no document fills attends to
itself and counts in no loss, by the loss mask alone: a padding token that is also the end of sequence does no harm.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from megatron_mixcpt.data.chat.encoding import EncodedConversation, EncodedPair
from megatron_mixcpt.data.datasets.encoded_samples import Document, Sample
from megatron_mixcpt.data.datasets.row_plan import RowPlan


class Samples(Protocol):
    """Samples by number, such as :class:`EncodedSamples`."""

    def __getitem__(self, index: int) -> Sample:
        """A sample."""


def conversation_sample(encoded: EncodedConversation) -> Sample:
    """A conversation as a sample of one document."""
    return (Document(encoded.tokens, encoded.loss_mask),)


def pair_sample(encoded: EncodedPair) -> Sample:
    """A pair as a sample of two documents: the prompt with the chosen response, and with the rejected one."""
    documents = []
    for response in (encoded.chosen_tokens, encoded.rejected_tokens):
        tokens = np.concatenate([encoded.prompt_tokens, response])
        documents.append(Document(tokens, np.arange(len(tokens)) >= len(encoded.prompt_tokens)))
    return tuple(documents)


def num_positions(sample: Sample) -> int:
    """Places that a sample takes in a row."""
    return sum(document.num_positions for document in sample)


class PackedMicrobatches(Dataset):
    """The microbatches of one data parallel rank, by (batch, microbatch). Items hold, for b rows of s positions:

    ``tokens``, ``labels``, ``position_ids``: int64 [b, s]. ``loss_mask``: float32 [b, s]. ``document``: int64 [b, s],
    the position's document, counted in the row; n where none is supervised there. ``sample``: int64 [b, n], each
    document's sample, -1 for none. ``cu_seqlens``: int32 [b, n + 2], where documents begin, then s as often as it
    takes. ``max_seqlen``: int32 [b]. ``sample_index``: int64, all samples of the microbatch. s and n, which is at least
    2 and the most documents of a row, differ from microbatch to microbatch.

    Args:
        samples: the samples that ``plan`` speaks of.
        plan: which of them lie in which row.
        rank: among the data parallel ranks.
        pad_id: a token of the vocabulary, to fill up with.
    """

    def __init__(self, samples: Samples, plan: RowPlan, rank: int, *, pad_id: int) -> None:
        self.samples = samples
        self.plan = plan
        self.rank = rank
        self.pad_id = pad_id

    def keys(self, first_batch: int = 0) -> Iterator[tuple[int, int]]:
        """(batch, microbatch) of every microbatch from a batch on, in order."""
        for batch in range(first_batch, self.plan.order.num_batches):
            for number in range(self.plan.num_microbatches(batch)):
                yield batch, number

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        batch, number = key
        rank = self.plan.batch(batch).ranks[self.rank]
        names, length = rank.microbatches[number], rank.lengths[number]
        rows = [[(name, document) for name in row for document in self.samples[name]] for row in names]
        most = max(2, *(len(row) for row in rows)) if rows else 2
        laid = [self._row(row, length, most) for row in rows]
        item = {field: torch.as_tensor(np.stack([row[field] for row in laid])) for field in laid[0]}
        return item | {"sample_index": torch.tensor([name for row in names for name in row], dtype=torch.int64)}

    def _row(self, documents: list[tuple[int, Document]], length: int, most: int) -> dict[str, np.ndarray]:
        row: dict[str, np.ndarray] = {
            "tokens": np.full(length, self.pad_id, np.int64),
            "labels": np.full(length, self.pad_id, np.int64),
            "loss_mask": np.zeros(length, np.float32),
            "position_ids": np.zeros(length, np.int64),
            "document": np.full(length, most, np.int64),
        }
        sample_of, starts, position = np.full(most, -1, np.int64), [], 0
        for number, (name, document) in enumerate(documents):
            place = slice(position, position + document.num_positions)
            supervised = document.loss_mask[1:]
            row["tokens"][place] = document.tokens[:-1]
            row["labels"][place] = document.tokens[1:]
            row["loss_mask"][place] = supervised
            row["position_ids"][place] = np.arange(document.num_positions)
            row["document"][place][supervised] = number
            sample_of[number] = name
            starts.append(position)
            position = place.stop
        row["position_ids"][position:] = np.arange(length - position)
        boundaries = np.full(most + 2, length, np.int32)
        boundaries[: len(starts) + 1] = [*starts, position]
        return row | {"sample": sample_of, "cu_seqlens": boundaries, "max_seqlen": np.diff(boundaries).max()}
