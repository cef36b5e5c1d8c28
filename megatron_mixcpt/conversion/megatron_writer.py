"""Write a model's weights as a checkpoint of the engine (``torch_dist``), one tensor at a time, without a model.

torch's distributed checkpoint plans from shapes and asks for each tensor when it writes it; it is filled in then.
Memory is one tensor. The keys, the objects beside the tensors and the common state are those that the engine saves
(megatron/core/dist_checkpointing/serialization.py, megatron/training/checkpointing.py).
"""

import io
import re
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from tqdm import tqdm

from megatron_mixcpt.conversion.megatron_iterations import RELEASE, write_tracker
from megatron_mixcpt.conversion.megatron_layout import COMMON_STATE, FORMAT_NAME, Place
from megatron_mixcpt.jobs.ranks import get_rank, get_world_size

FORMAT = '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
CHECKPOINT_VERSION = 3.0  # query, key and value in the engine's present order
# The engine's metadata of what a checkpoint holds (_build_sharded_state_dict_metadata in megatron/training).
CONTENT_METADATA = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}


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
    """Plans from shapes alone, shares the tensors among ranks, and fills each when the writer asks for it.

    All use the same memory: fresh memory for each would cost as much time in page faults as the reading.
    """

    def __init__(self, sources: list[TensorSource], objects: Mapping[str, bytes]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.sources, self.objects = sources, objects
        self._memory = bytearray(max(source.num_bytes for source in sources))

    def create_local_plan(self) -> SavePlan:
        rank, size = get_rank(), get_world_size()
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
        # Not a slice of a larger tensor: torch.save would write all of the larger one.
        tensor = torch.frombuffer(memoryview(self._memory)[: source.num_bytes], dtype=source.dtype).view(source.shape)
        source.fill(tensor)
        return tensor.view(*(1 for _ in source.place.sizes), *source.shape)


class _StreamingWriter(dcp.FileSystemWriter):
    """Holds one tensor at a time; the base class keeps the last tensor of every key until its file is complete."""

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        name, results = f"{plan.storage_data.prefix}0.distcp", []
        with open(Path(self.path) / name, "wb") as file:
            for item in tqdm(plan.items, desc="convert", unit="tensor", disable=None if get_rank() == 0 else True):
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
    """Write a weights-only checkpoint as ``folder/release``, one tensor after the other.

    Under an initialised process group the ranks share the tensors, and every rank must call.

    Args:
        folder: the checkpoint folder; its tracker file is written last.
        sources: every tensor of the model, over all layers.
        arguments: what the engine takes for the arguments of the run that saved it (``--use-checkpoint-args``).
    """
    target = folder / RELEASE
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
    if get_rank() == 0:
        (target / FORMAT_NAME).write_text(FORMAT)
        write_tracker(folder, target)


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

    Loading fails where a key is missing, and ignores keys without a module, so all are written.
    """
    places: dict[Place, None] = {}
    for source in sources:
        module, _, _ = source.place.key.rpartition(".")
        index, sizes = source.place.index, source.place.sizes
        if not module.startswith(("embedding", "output_layer")):
            places[Place(f"{module}._extra_state", index, sizes)] = None
        if layer := re.match(r"decoder\.layers\.(\d+\.)?", module):
            core, num_axes = f"{layer[0]}self_attention.core_attention", 0 if layer[1] else 1
            places[Place(f"{core}._extra_state", index[:num_axes], sizes[:num_axes])] = None
    return [place.object_key for place in places]


def _serialize(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
