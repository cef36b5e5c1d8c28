"""The engine's ``torch_dist`` checkpoints on disk, read and written one tensor at a time, with no model built.

The engine stacks the layers of a model: ``decoder.layers.3.mlp.linear_fc2.weight`` is row 3 of the tensor
``decoder.layers.mlp.linear_fc2.weight`` of shape [layers, hidden, ffn], and experts add a second such axis. A folder
holds ``latest_checkpointed_iteration.txt`` ("release", or a number) and ``release/`` or ``iter_0000100/``.

The index of a checkpoint (``.metadata``) is a pickle that torch opens: open only checkpoints that you trust.
"""

import io
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_mixcpt.errors import CheckpointError

TRACKER_NAME = "latest_checkpointed_iteration.txt"
FORMAT_FILE, FORMAT = "metadata.json", '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
COMMON_STATE = "common_state/shard_0_1"
CHECKPOINT_VERSION = 3.0  # query, key and value ordered as the engine orders them since 2020
# The engine's metadata of what a checkpoint holds (_build_sharded_state_dict_metadata in megatron/training).
CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


@dataclass(frozen=True)
class Place:
    """Where an engine tensor stands in a checkpoint: a stacked tensor's key, and the leading indices and sizes."""

    key: str
    index: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def object_key(self) -> str:
        """Key of an object (not a tensor) at this place, as the engine spells it."""
        index, sizes = self.index or (0,), self.sizes or (1,)
        return f"{self.key}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, sizes))}"


def place_of(engine_name: str, num_layers: int, num_experts: int = 0) -> Place:
    """The place of an engine tensor; names outside ``decoder.layers.3.`` (``.mlp.experts.5.``) stand for themselves."""
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", engine_name)
    if not layer:
        return Place(engine_name)
    expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(.+)", layer[2])
    if not expert:
        return Place(f"decoder.layers.{layer[2]}", (int(layer[1]),), (num_layers,))
    key = f"decoder.layers.mlp.experts.experts.{expert[2]}"
    return Place(key, (int(layer[1]), int(expert[1])), (num_layers, num_experts))


@dataclass(frozen=True)
class TensorSource:
    """A tensor to write: its place, shape and dtype, and a function that produces it when its turn comes."""

    place: Place
    shape: tuple[int, ...]
    dtype: torch.dtype
    produce: Callable[[], torch.Tensor]


class _StreamingPlanner(dcp.DefaultSavePlanner):
    """Plans from shapes alone and produces each tensor when the writer asks for it; ranks take turns."""

    def __init__(self, sources: list[TensorSource], objects: Mapping[str, bytes]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.sources, self.objects = sources, objects

    def create_local_plan(self) -> SavePlan:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        mine = range(rank, len(self.sources), size)
        items = [_write_item(self.sources[index]) for index in mine]
        self._by_index = {item.index: self.sources[index] for item, index in zip(items, mine, strict=True)}
        if rank == 0:
            items += [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self.objects]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            return io.BytesIO(self.objects[write_item.index.fqn])
        source = self._by_index[write_item.index]
        tensor = source.produce()
        assert tuple(tensor.shape) == source.shape and tensor.dtype == source.dtype, source.place
        return tensor.view(*(1 for _ in source.place.sizes), *tensor.shape)


def _write_item(source: TensorSource) -> WriteItem:
    leading = source.place.sizes
    offsets = torch.Size((*source.place.index, *(0 for _ in source.shape)))
    chunk = ChunkStorageMetadata(offsets, torch.Size((*(1 for _ in leading), *source.shape)))
    data = TensorWriteData(chunk, TensorProperties(dtype=source.dtype), torch.Size((*leading, *source.shape)))
    return WriteItem(MetadataIndex(source.place.key, offsets), WriteItemType.SHARD, tensor_data=data)


def write_release(folder: Path, sources: list[TensorSource], arguments: Mapping[str, Any]) -> None:
    """Write a weights-only checkpoint as ``folder/release``, each tensor produced, written and dropped in turn.

    Under an initialised process group, the ranks share the tensors, and every rank must call.

    Args:
        folder: the checkpoint folder; its tracker file is written last.
        sources: every tensor of the model, over all layers.
        arguments: what the engine finds as the arguments of the run that saved (``--use-checkpoint-args``).
    """
    target = folder / "release"
    target.mkdir(parents=True, exist_ok=True)
    common = {
        "args": Namespace(**arguments),
        "checkpoint_version": CHECKPOINT_VERSION,
        "iteration": 0,
        "content_metadata": CONTENT_METADATA,
    }
    empty = _serialize([torch.empty(0, dtype=torch.uint8)])
    objects = {key: empty for key in _extra_states(sources)} | {COMMON_STATE: _serialize([common])}
    writer = dcp.FileSystemWriter(target, sync_files=False)
    no_dist = not dist.is_initialized()
    dcp.save({}, storage_writer=writer, planner=_StreamingPlanner(sources, objects), no_dist=no_dist)
    if no_dist or dist.get_rank() == 0:
        (target / FORMAT_FILE).write_text(FORMAT)
        (folder / TRACKER_NAME).write_text("release")


def _extra_states(sources: list[TensorSource]) -> list[str]:
    """Keys of the state that Transformer Engine keeps beside each module's weights; empty outside 8-bit training.

    Loading fails where a key is missing and ignores those it has no module for, so each is written.
    """
    places = {}
    for source in sources:
        module, _, _ = source.place.key.rpartition(".")
        if not module.startswith(("embedding", "output_layer")):
            names = [module, "decoder.layers.self_attention.core_attention"] if source.place.index else [module]
            for name in names:
                index, sizes = source.place.index, source.place.sizes
                length = 1 if name.endswith("core_attention") else len(index)
                places[Place(f"{name}._extra_state", index[:length], sizes[:length])] = None
    return [place.object_key for place in places]


def _serialize(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


class _Into(dcp.DefaultLoadPlanner):
    """Reads into one given tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.target


class MegatronCheckpoint:
    """One saved iteration, open for reading tensor by tensor, whatever layout it was saved at."""

    def __init__(self, load_dir: str | Path, iteration: int | None = None) -> None:
        """Open ``iteration`` (None: the one that the tracker file names).

        Raises:
            CheckpointError: no such folder or iteration, another format, or an index that cannot be read.
        """
        self.folder = find_iteration(Path(load_dir), iteration)
        self._reader = dcp.FileSystemReader(self.folder)
        try:
            metadata = self._reader.read_metadata()
        except Exception as error:  # an index is a pickle: anything can come out of a damaged one
            raise CheckpointError(f"{self.folder}/.metadata cannot be read ({error}): the save was cut off") from error
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        entries = metadata.state_dict_metadata.items()
        self._tensors = {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}

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
        target = torch.empty(torch.Size((*(1 for _ in place.sizes), *shape)), dtype=entry.properties.dtype)
        offsets = torch.Size((*place.index, *(0 for _ in shape)))
        wanted = [ChunkStorageMetadata(offsets, target.shape)]
        items = create_read_items_for_chunk_list(place.key, entry, wanted)
        covered = sum(torch.Size(item.lengths).numel() for item in items)
        if covered != target.numel():
            raise CheckpointError(f"{self.folder}: {place.key} holds {covered} of {target.numel()} values")
        try:
            self._reader.read_data(LoadPlan(items), _Into(target))
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise CheckpointError(f"{self.folder}: {place.key} cannot be read ({error}): copy it again") from error
        return target.view(shape)


def find_iteration(load_dir: Path, iteration: int | None = None) -> Path:
    """The folder of one saved iteration; raises :class:`CheckpointError` naming what there is."""
    tracker = load_dir / TRACKER_NAME
    if not tracker.is_file():
        raise CheckpointError(f"{load_dir} is not a Megatron checkpoint: it has no {TRACKER_NAME}")
    latest = tracker.read_text().strip() if iteration is None else str(iteration)
    folder = load_dir / ("release" if latest == "release" else f"iter_{int(latest):07d}")
    if not folder.is_dir():
        present = ", ".join(sorted(path.name for path in load_dir.iterdir() if path.is_dir())) or "nothing"
        raise CheckpointError(f"{load_dir} has no {folder.name}; it has {present}")
    if not (folder / FORMAT_FILE).is_file():
        raise CheckpointError(f"{folder} is not a whole torch_dist checkpoint: it has no {FORMAT_FILE}")
    return folder
