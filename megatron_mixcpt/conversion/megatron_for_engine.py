"""Check, before the engine loads a checkpoint, that loading it would not run code that the checkpoint names.

The engine opens a checkpoint's index, ``.metadata``, with ``pickle.load`` and the objects beside the tensors with
``torch.load(weights_only=False)`` (torch/distributed/checkpoint/filesystem.py and default_planner.py). Both call
whatever function a pickle names. So every pickle is read inertly first, and a checkpoint that names anything other than
what the engine saves is refused. A warning tells where a folder was not written by this project.
"""

import io
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import megatron.core  # noqa: F401 - tells torch which of the engine's classes are safe to load
import torch
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedObject

from megatron_mixcpt.conversion.hf_metadata import FOLDER_NAME, SOURCE_NAME
from megatron_mixcpt.conversion.inert_pickle import load_index, names_beyond
from megatron_mixcpt.conversion.megatron_reader import MegatronCheckpoint
from megatron_mixcpt.errors import CheckpointError

# Classes without behaviour that the engine's indexes hold beside those that are opened.
INDEX_CLASSES = frozenset(
    {"pathlib.PosixPath"}
    | {f"torch.distributed.checkpoint.planner.{name}" for name in ("SavePlan", "WriteItem", "WriteItemType")}
    | {f"torch.distributed.checkpoint.planner.{name}" for name in ("TensorWriteData", "BytesIOWriteData")}
)
_WAY_OUT = "loading it would run code that it names, so it is refused; get the checkpoint from a source you trust"


def open_for_engine(load_dir: str | Path, iteration: int | None = None) -> MegatronCheckpoint:
    """Open an iteration (None: the one that the tracker file names) that the engine may load.

    Raises:
        CheckpointError: there is none, it cannot be read, or loading it would run code that it names.
    """
    checkpoint = MegatronCheckpoint(load_dir, iteration)
    _check_pickles(checkpoint)
    return checkpoint


def supply_missing_extra_states(state: dict[str, Any], folder: Path) -> None:
    """Give what the engine is to load an empty extra state wherever the checkpoint in ``folder`` has none; in place.

    Each module of Transformer Engine has an extra state, empty but in 8-bit training with a history. Layers without
    Transformer Engine save none for their norms, and the engine cannot load a checkpoint that lacks an object.
    """
    if (folder / ".metadata").is_file():
        _supply(state, load_index((folder / ".metadata").read_bytes()).state_dict_metadata.keys())


def _supply(state: dict[str, Any], saved: Collection[str]) -> None:
    for name, value in state.items():
        if isinstance(value, dict):
            _supply(value, saved)
        elif isinstance(value, ShardedObject) and value.key.endswith("_extra_state") and value.unique_key not in saved:
            state[name] = LocalNonpersistentObject(torch.empty(0, dtype=torch.uint8, device="cpu"))


def _check_pickles(checkpoint: MegatronCheckpoint) -> None:
    """Read all pickles of one saved iteration without running them.

    The first rank warns of a checkpoint that this project did not write: it has no ``hf/source.json`` beside it.

    Raises:
        CheckpointError: one names something that the engine would not have saved, or cannot be read.
    """
    load_dir = checkpoint.folder.parent
    if not (load_dir / FOLDER_NAME / SOURCE_NAME).is_file() and os.environ.get("RANK", "0") == "0":
        warnings.warn(
            f"{load_dir} was not written by megatron-mixcpt (it has no {FOLDER_NAME}/{SOURCE_NAME}): its pickles are "
            "checked before they are loaded, but only load such checkpoints from sources you trust",
            stacklevel=3,
        )
    index = checkpoint.folder / ".metadata"
    if names := names_beyond(index.read_bytes(), INDEX_CLASSES):
        raise CheckpointError(f"{index} names {names[0]}: {_WAY_OUT}")
    for key in checkpoint.objects():
        try:
            torch.load(io.BytesIO(checkpoint.object_bytes(key)), map_location="cpu", weights_only=True)
        except CheckpointError:
            raise
        except Exception as error:  # whatever the reader meets in a damaged or hostile file
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{checkpoint.folder}: {key}: {_WAY_OUT} ({reason})") from error
