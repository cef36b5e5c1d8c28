"""Encoded samples in a folder that any number of processes map into memory: none of them holds a copy.

=================  =====================================================================================
file               holds
=================  =====================================================================================
``tokens.bin``     int32, the tokens of all documents, one after the other
``loss_mask.bin``  bool, for each token whether it is to be predicted
``documents.bin``  int64, where each document begins in the two, and the end of the last
``ids.bin``        16 bytes for each sample, see ``data/sample_id.py``
``rejects.jsonl``  an object for each record that gave no sample: source, line, reason, detail
``summary.json``   how many samples there are and of how many documents each, records that gave none by
                   reason, notes by name, and what the samples were made from
=================  =====================================================================================

A sample is one or two documents: a conversation, or the chosen and the rejected end of a pair, each with its prompt.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

_ID_BYTES = 16


class Document(NamedTuple):
    """``tokens``: int32 [n]; ``loss_mask``: bool [n], True where the token is to be predicted (the first never is)."""

    tokens: np.ndarray
    loss_mask: np.ndarray

    @property
    def num_positions(self) -> int:
        """Places in a row: of n tokens the first n - 1 predict the last n - 1."""
        return len(self.tokens) - 1


Sample = tuple[Document, ...]


@dataclass
class EncodedPart:
    """Samples on their way from the process that encoded them to the one that writes."""

    tokens: np.ndarray
    """int32, of all documents."""
    loss_mask: np.ndarray
    """bool, likewise."""
    document_lengths: np.ndarray
    """int32, in tokens."""
    ids: bytes
    """16 bytes for each sample."""
    rejects: list[dict[str, Any]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, samples: Iterable[tuple[str, Sample]], rejects: list[dict[str, Any]], notes: Counter[str]
    ) -> "EncodedPart":
        """Of samples with their ids (32 hexadecimal digits each)."""
        ids: list[bytes] = []
        documents: list[Document] = []
        for name, sample in samples:
            ids.append(bytes.fromhex(name))
            documents += sample
        tokens = [document.tokens for document in documents]
        return cls(
            np.concatenate(tokens) if tokens else np.empty(0, np.int32),
            np.concatenate([document.loss_mask for document in documents]) if tokens else np.empty(0, bool),
            np.array([len(part) for part in tokens], np.int32),
            b"".join(ids),
            rejects,
            notes,
        )


class SampleWriter:
    """Writes a folder of samples, part by part, in memory that does not grow with them. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = ("tokens.bin", "loss_mask.bin", "documents.bin", "ids.bin", "rejects.jsonl")
        self._files = {name: open(folder / name, "wb") for name in names}  # noqa: SIM115 # closed on leaving
        self._files["documents.bin"].write(np.zeros(1, np.int64).tobytes())
        self._end = 0
        self.num_samples = self.num_documents = 0
        self.rejects: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def add(self, part: EncodedPart) -> None:
        """Append the samples of a part. Raises OSError where the disk is full."""
        files = self._files
        files["tokens.bin"].write(np.ascontiguousarray(part.tokens, np.int32).data)
        files["loss_mask.bin"].write(np.ascontiguousarray(part.loss_mask, bool).data)
        ends = self._end + np.cumsum(part.document_lengths, dtype=np.int64)
        files["documents.bin"].write(ends.data)
        files["ids.bin"].write(part.ids)
        self._end += int(part.document_lengths.sum())
        self.num_documents += len(part.document_lengths)
        self.num_samples += len(part.ids) // _ID_BYTES
        for reject in part.rejects:
            files["rejects.jsonl"].write((json.dumps(reject, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
            self.rejects[reject["reason"]] += 1
        self.notes += part.notes

    def finish(self, documents_per_sample: int, made_from: dict[str, Any]) -> None:
        """Write the summary; ``made_from`` is all that decides the samples."""
        assert self.num_documents == self.num_samples * documents_per_sample
        summary = {
            "num_samples": self.num_samples,
            "documents_per_sample": documents_per_sample,
            "num_tokens": self._end,
            "rejects": dict(self.rejects),
            "notes": dict(self.notes),
            "made_from": made_from,
        }
        (self._folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


class EncodedSamples:
    """The samples of a folder that :class:`SampleWriter` wrote, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self._documents_per_sample: int = self.summary["documents_per_sample"]
        self._tokens = _mapped(folder / "tokens.bin", np.int32)
        self._loss_mask = _mapped(folder / "loss_mask.bin", np.bool_)
        self._starts = _mapped(folder / "documents.bin", np.int64)
        self._ids = _mapped(folder / "ids.bin", np.uint8).reshape(-1, _ID_BYTES)

    def __len__(self) -> int:
        return self.summary["num_samples"]

    def __getitem__(self, index: int) -> Sample:
        first = index * self._documents_per_sample
        bounds = self._starts[first : first + self._documents_per_sample + 1].tolist()
        pieces = [slice(start, end) for start, end in zip(bounds, bounds[1:], strict=False)]
        return tuple(Document(self._tokens[piece], self._loss_mask[piece]) for piece in pieces)

    def document_positions(self, samples: np.ndarray) -> np.ndarray:
        """Places that each document of these samples takes in a row, int64 [samples, documents of each]."""
        bounds = self._starts[samples[:, None] * self._documents_per_sample + np.arange(self._documents_per_sample + 1)]
        return np.diff(bounds, axis=1) - 1

    def id(self, index: int) -> str:
        """A sample's id, as scoring and selection write it."""
        return self._ids[index].tobytes().hex()

    def held_out(self, fraction: float) -> np.ndarray:
        """bool, for each sample whether it is among the ``fraction`` that is held out, which its id decides alone."""
        if not fraction:
            return np.zeros(len(self), bool)
        leading = np.ascontiguousarray(self._ids[:, :4]).view(">u4")[:, 0]
        return leading < round(fraction * 2**32)


def _mapped(path: Path, dtype: type) -> np.ndarray:
    """The file's contents; an empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
