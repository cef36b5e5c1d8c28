"""Tensors of a base model that are not trained, such as a vision tower, on their way into an export.

They are in no Megatron checkpoint: the export copies them from the base model's folder. A checkpoint's
``hf/source.json`` has a summary of them, by which the folder that is named at the export is recognised.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_mixcpt.conversion.base_weights import tensors_digest
from megatron_mixcpt.conversion.hf_model_folder import HFModel, read_config, read_model_folder
from megatron_mixcpt.conversion.tensor_files.writer import SafetensorsWriter, TensorShape
from megatron_mixcpt.errors import CheckpointError
from megatron_mixcpt.jobs.ranks import get_rank, get_world_size

KEY = "carried"
CHUNK_BYTES = 64_000_000
_SHOWN = 6


def carried_summary(model: HFModel) -> dict[str, Any]:
    """What ``source.json`` says of the tensors that travel untrained; empty where there are none."""
    if not (names := model.carried):
        return {}
    digest = tensors_digest(model.tensors, names)
    return {KEY: {"tensors": len(names), "parts": _parts(names), "digest": digest}}


def _parts(names: list[str]) -> list[str]:
    """The modules that the tensors belong to, by the first part of their names that tells them apart."""
    parts = dict.fromkeys(name.removeprefix("model.").partition(".")[0] for name in names)
    return list(parts)[:_SHOWN]


@dataclass(frozen=True)
class CarriedTensors:
    """The tensors of a base model's folder that an export takes over."""

    model: HFModel

    @property
    def shapes(self) -> dict[str, TensorShape]:
        """Shape and dtype of each, by name."""
        entries = self.model.tensors.entries
        return {name: TensorShape(entries[name].shape, entries[name].dtype) for name in self.model.carried}

    def copy_into(self, writer: SafetensorsWriter) -> None:
        """Write this rank's share of them as they are; every rank must call."""
        for name in list(self.shapes)[get_rank() :: get_world_size()]:
            self._copy(name, writer)

    def _copy(self, name: str, writer: SafetensorsWriter) -> None:
        """Write one, a part at a time."""
        entry = self.model.tensors.entries[name].stacked(None)  # a single number is one row
        for rows in _ranges(entry.shape, entry.dtype):
            writer.write_rows(name, rows.start, self.model.tensors.read(name, rows))


def _ranges(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[slice]:
    row_bytes = max(1, torch.Size(shape[1:]).numel() * dtype.itemsize)
    step = max(1, CHUNK_BYTES // row_bytes)
    return (slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def find_carried(origin: dict[str, Any], folder: str | Path | None, checkpoint: Path) -> CarriedTensors | None:
    """The tensors that the export of a checkpoint takes from the base model's folder; None: there are none to take.

    Args:
        origin: ``source.json`` of the checkpoint.
        folder: the base model's, where one is named.
        checkpoint: the checkpoint's folder, for errors.

    Raises:
        CheckpointError: the checkpoint's model has such tensors and no folder is named, or one without the same.
    """
    wanted = origin.get(KEY)
    if folder is None:
        if wanted is None:
            return None
        raise CheckpointError(
            f"{checkpoint} was trained from {origin.get('base_model')}, of which {wanted['tensors']} tensors "
            f"({', '.join(wanted['parts'])}) are not in the checkpoint: export it with tools/convert_to_hf.py and that "
            "model's folder as --hf-reference"
        )
    architecture = read_config(folder).architecture
    if wanted is None and architecture.tower is None and architecture.carried_tensors is None:
        return None  # the folder need not have any weights
    model = read_model_folder(folder)
    if wanted is not None and carried_summary(model).get(KEY) != wanted:
        raise CheckpointError(
            f"--hf-reference {folder} is not {origin.get('base_model')}, from which {checkpoint} was trained: its "
            "tensors beside the language model are others"
        )
    return CarriedTensors(model) if model.carried else None
