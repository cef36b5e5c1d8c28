"""Rows of packed samples for the engine's data loader: conversations (SFT) and preference pairs (DPO).

A sample is one or two *documents*: a conversation, or the chosen and the rejected end of a pair, each with its prompt.
Every document has its own positions and attends to nothing outside it. What no document fills attends to itself and
counts in no loss, by the loss mask alone: a padding token that is also the end of sequence does no harm.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_mixcpt.data.chat.encoding import EncodedConversation, EncodedPair
from megatron_mixcpt.data.datasets.packing import PackedBatches


class Document(NamedTuple):
    """``tokens``: int32 [n]; ``loss_mask``: bool [n], True where the token is to be predicted (the first never is)."""

    tokens: np.ndarray
    loss_mask: np.ndarray

    @property
    def num_positions(self) -> int:
        """Places in a row: of n tokens the first n - 1 predict the last n - 1."""
        return len(self.tokens) - 1


Sample = tuple[Document, ...]


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


class PackedRows(Dataset):
    """All rows of a run, in the order of its batches. Items hold, for a row of s positions:

    ``tokens``, ``labels``, ``position_ids``: int64 [s]. ``loss_mask``: float32 [s]. ``document``: int64 [s], the
    position's document, counted in the row; ``max_documents`` where none is supervised there. ``sample``: int64
    [max_documents], each document's sample, -1 for none. ``cu_seqlens``: int32 [max_documents + 2], where documents
    begin, then s as often as it takes. ``max_seqlen``: int32 scalar. ``sample_index``: the row.

    Args:
        samples: every sample of the run.
        batches: which of them lie in which row.
        row_length: s.
        pad_id: a token of the vocabulary, to fill up with.
        split: by which the engine picks the sampler.
    """

    def __init__(
        self, samples: Sequence[Sample], batches: PackedBatches, row_length: int, *, pad_id: int, split: Split
    ) -> None:
        self.samples = samples
        self.batches = batches
        self.row_length = row_length
        self.pad_id = pad_id
        self.split = split
        rows = (row for batch in batches.batches for row in batch)
        self.max_documents = max((sum(len(samples[index]) for index in row) for row in rows), default=1)

    def __len__(self) -> int:
        return self.batches.num_batches * self.batches.num_rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
        length, most = self.row_length, self.max_documents
        row: dict[str, np.ndarray] = {
            "tokens": np.full(length, self.pad_id, np.int64),
            "labels": np.full(length, self.pad_id, np.int64),
            "loss_mask": np.zeros(length, np.float32),
            "position_ids": np.zeros(length, np.int64),
            "document": np.full(length, most, np.int64),
        }
        sample_of, starts, position = np.full(most, -1, np.int64), [], 0
        documents = [(name, document) for name in self.batches.row(index) for document in self.samples[name]]
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
        row |= {"sample": sample_of, "cu_seqlens": boundaries, "max_seqlen": np.diff(boundaries).max()}
        return {key: torch.as_tensor(value) for key, value in row.items()} | {"sample_index": index}
