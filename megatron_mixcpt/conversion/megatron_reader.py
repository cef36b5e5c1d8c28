"""Read the model's tensors from a checkpoint of the engine (``torch_dist``), one at a time, without building a model.

Whatever layout it was saved at, the index says which file holds which part of each stacked tensor. Index and arguments
are pickles, which are opened inertly; tensors are read with ``weights_only``. Nothing in a checkpoint is executed.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_mixcpt.conversion.inert_pickle import load_index, load_object
from megatron_mixcpt.conversion.megatron_layout import COMMON_STATE, Place, find_iteration
from megatron_mixcpt.errors import CheckpointError


class MegatronCheckpoint:
    """One saved iteration, open for reading tensor by tensor, whatever layout it was saved at.

    Reading it here runs nothing that it holds. Where the engine is to load it, open it with
    :func:`~megatron_mixcpt.conversion.megatron_for_engine.open_for_engine`.
    """

    def __init__(self, load_dir: str | Path, iteration: int | None = None) -> None:
        """Open ``iteration`` of the checkpoint folder ``load_dir`` (None: the one that the tracker file names).

        Raises CheckpointError for a missing folder or iteration, another format, or an index that cannot be read.
        """
        self.folder = find_iteration(Path(load_dir), iteration)
        try:
            metadata = load_index((self.folder / ".metadata").read_bytes())
            entries = metadata.state_dict_metadata.items()
        except Exception as error:  # an index is a pickle: anything can come out of a damaged one
            raise CheckpointError(
                f"{self.folder}/.metadata cannot be read ({error}): the save was interrupted"
            ) from error
        self._storage = metadata.storage_data
        self._tensors = {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}

    @property
    def iteration(self) -> int:
        """The saved iteration; 0 for a release, which was not trained."""
        return int(self.folder.name.removeprefix("iter_")) if self.folder.name.startswith("iter_") else 0

    def arguments(self) -> dict[str, Any]:
        """Arguments of the run that saved it, by name; values that are not plain are opaque. Empty where unknown.

        Raises CheckpointError where they cannot be read.
        """
        if MetadataIndex(COMMON_STATE) not in self._storage:
            return {}
        try:
            (common,) = load_object(self.object_bytes(COMMON_STATE))
            return vars(common["args"]) if "args" in common else {}
        except Exception as error:  # a pickle too
            raise CheckpointError(f"{self.folder}: {COMMON_STATE} cannot be read ({error}): copy it again") from error

    def objects(self) -> list[str]:
        """Keys of the objects that are saved beside the tensors, each a pickle."""
        return [index.fqn for index in self._storage if index.fqn not in self._tensors]

    def object_bytes(self, key: str) -> bytes:
        """The pickle saved as ``key``. Raises CheckpointError where its file cannot be read."""
        info = self._storage[MetadataIndex(key)]
        try:
            with open(self.folder / info.relative_path, "rb") as file:
                file.seek(info.offset)
                return file.read(info.length)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.folder}: {key} cannot be read ({error}): copy it again") from error

    def model_tensors(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape (with the leading axes) and dtype of each of the model's stacked tensors, by key."""
        skipped = ("optimizer.", "chained_", "rng_state")
        return {
            key: (entry.size, entry.properties.dtype)
            for key, entry in self._tensors.items()
            if not key.startswith(skipped)
        }

    def read(self, place: Place) -> torch.Tensor:
        """Read the tensor at ``place``, without its leading axes, into fresh CPU memory."""
        entry = self._tensors[place.key]
        shape = entry.size[len(place.sizes) :]
        whole = torch.Size((*(1 for _ in place.sizes), *shape))
        wanted = ChunkStorageMetadata(torch.Size((*place.index, *(0 for _ in shape))), whole)
        items = create_read_items_for_chunk_list(place.key, entry, [wanted])
        covered = sum(torch.Size(item.lengths).numel() for item in items)
        if covered != whole.numel():
            raise CheckpointError(
                f"{self.folder}: {place.key} holds {covered} of {whole.numel()} values: copy it again"
            )
        if len(items) == 1:
            return self._read_item(place.key, items[0]).reshape(shape)
        target = torch.empty(whole, dtype=entry.properties.dtype)
        for item in items:
            _narrow(target, item.dest_offsets, item.lengths).copy_(self._read_item(place.key, item))
        return target.view(shape)

    def _read_item(self, key: str, item: ReadItem) -> torch.Tensor:
        """The part of one saved chunk that ``item`` asks for."""
        info = self._storage[item.storage_index]
        try:
            with open(self.folder / info.relative_path, "rb") as file:
                view = _create_file_view(file, info.offset, info.length)
                chunk = torch.load(view, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{self.folder}: {key} cannot be read ({reason}): copy it again") from error
        return _narrow(chunk, item.storage_offsets, item.lengths)


def _narrow(tensor: torch.Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    return tensor[tuple(slice(start, start + length) for start, length in zip(offsets, lengths, strict=True))]
