"""The engine's ``torch_dist`` checkpoints on disk, read and written one tensor at a time, with no model built.

The engine stacks the layers of a model: ``decoder.layers.3.mlp.linear_fc2.weight`` is row 3 of the tensor
``decoder.layers.mlp.linear_fc2.weight`` of shape [layers, hidden, ffn], and experts add a second such axis. A folder
holds ``latest_checkpointed_iteration.txt`` ("release", or a number) and ``release/`` or ``iter_0000100/``.

The index of a checkpoint (``.metadata``) is a pickle that torch opens: open only checkpoints that you trust.
"""

import io
import pickle
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.checkpoint.utils import _create_file_view

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
    """A tensor to write: its place, shape and dtype, and a function that fills it in when its turn comes."""

    place: Place
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Callable[[torch.Tensor], None]

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class _StreamingPlanner(dcp.DefaultSavePlanner):
    """Plans from shapes alone and fills each tensor, in the same memory, when the writer asks for it; ranks take turns.

    Fresh memory for each would cost as much time in page faults as the reading itself.
    """

    def __init__(self, sources: list[TensorSource], objects: Mapping[str, bytes]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.sources, self.objects = sources, objects
        self._memory = bytearray(max(source.num_bytes for source in sources))

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
        # Not a slice of a larger tensor: torch.save would write all of that.
        tensor = torch.frombuffer(memoryview(self._memory)[: source.num_bytes], dtype=source.dtype).view(source.shape)
        source.fill(tensor)
        return tensor.view(*(1 for _ in source.place.sizes), *source.shape)


class _StreamingWriter(dcp.FileSystemWriter):
    """Holds one tensor at a time; the base class keeps the last tensor of every key until its file is whole."""

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        name, results = f"{plan.storage_data.prefix}0.distcp", []
        with open(Path(self.path) / name, "wb") as file:
            for item in plan.items:
                offset = file.tell()
                value = planner.resolve_data(item)
                if isinstance(value, io.BytesIO):
                    file.write(value.getbuffer())
                else:
                    torch.save(value, file)
                del value
                length = file.tell() - offset
                results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done


def _write_item(source: TensorSource) -> WriteItem:
    leading = source.place.sizes
    offsets = torch.Size((*source.place.index, *(0 for _ in source.shape)))
    chunk = ChunkStorageMetadata(offsets, torch.Size((*(1 for _ in leading), *source.shape)))
    data = TensorWriteData(chunk, TensorProperties(dtype=source.dtype), torch.Size((*leading, *source.shape)))
    return WriteItem(MetadataIndex(source.place.key, offsets), WriteItemType.SHARD, tensor_data=data)


def write_release(folder: Path, sources: list[TensorSource], arguments: Mapping[str, Any]) -> None:
    """Write a weights-only checkpoint as ``folder/release``, each tensor filled in and written in turn.

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
    no_dist = not dist.is_initialized()
    with _without_checksums(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        planner = _StreamingPlanner(sources, objects)
        dcp.save({}, storage_writer=_StreamingWriter(target), planner=planner, no_dist=no_dist)
    if no_dist or dist.get_rank() == 0:
        (target / FORMAT_FILE).write_text(FORMAT)
        (folder / TRACKER_NAME).write_text("release")


@contextmanager
def _without_checksums() -> Iterator[None]:
    """torch.save without CRC-32: torch.load never checks it, and computing it takes as long as writing."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


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


class MegatronCheckpoint:
    """One saved iteration, open for reading tensor by tensor, whatever layout it was saved at."""

    def __init__(self, load_dir: str | Path, iteration: int | None = None) -> None:
        """Open ``iteration`` (None: the one that the tracker file names).

        Raises:
            CheckpointError: no such folder or iteration, another format, or an index that cannot be read.
        """
        self.folder = find_iteration(Path(load_dir), iteration)
        try:
            metadata = dcp.FileSystemReader(self.folder).read_metadata()
        except Exception as error:  # an index is a pickle: anything can come out of a damaged one
            raise CheckpointError(f"{self.folder}/.metadata cannot be read ({error}): the save was cut off") from error
        self._storage = metadata.storage_data
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
        whole = torch.Size((*(1 for _ in place.sizes), *shape))
        wanted = ChunkStorageMetadata(torch.Size((*place.index, *(0 for _ in shape))), whole)
        items = create_read_items_for_chunk_list(place.key, entry, [wanted])
        covered = sum(torch.Size(item.lengths).numel() for item in items)
        if covered != whole.numel():
            raise CheckpointError(f"{self.folder}: {place.key} holds {covered} of {whole.numel()} values")
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
