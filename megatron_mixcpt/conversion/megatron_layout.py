"""How the engine lays a model out in its ``torch_dist`` checkpoints: folders, keys, and stacked layers.

The engine stacks the layers of a model: ``decoder.layers.3.mlp.linear_fc2.weight`` is row 3 of the tensor
``decoder.layers.mlp.linear_fc2.weight`` of shape [layers, hidden, ffn], and experts add a second such axis. Layers of
several kinds are not stacked: their tensors have the layer's number in their keys. A folder holds
``latest_checkpointed_iteration.txt`` ("release", or a number) and ``release/`` or ``iter_0000100/``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_mixcpt.errors import CheckpointError

TRACKER_NAME = "latest_checkpointed_iteration.txt"
FORMAT_NAME = "metadata.json"
COMMON_STATE = "common_state/shard_0_1"  # the run's arguments and counters, as one object


@dataclass(frozen=True)
class Place:
    """Where a checkpoint holds an engine tensor: a stacked tensor's key, and the leading indices and sizes."""

    key: str
    index: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def object_key(self) -> str:
        """Key of an object (not a tensor) at this place, as the engine spells it."""
        index, sizes = self.index or (0,), self.sizes or (1,)
        return f"{self.key}/shard_{'.'.join(map(str, index))}_{'.'.join(map(str, sizes))}"


def stacks_layers(engine_arguments: Mapping[str, Any]) -> bool:
    """Whether the engine stacks a model's layers: not where they are told apart (its ``TransformerBlock``)."""
    frequencies = (engine_arguments.get(name) for name in ("moe_layer_freq", "linear_attention_freq"))
    return all(frequency in (None, 1) for frequency in frequencies)


def place_of(engine_name: str, num_layers: int, num_experts: int = 0, stacked: bool = True) -> Place:
    """The place of an engine tensor; names outside ``decoder.layers.3.`` are keys as they are."""
    layer = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", engine_name)
    if not layer:
        return Place(engine_name)
    prefix = "decoder.layers." if stacked else f"decoder.layers.{layer[1]}."
    index, sizes = ((int(layer[1]),), (num_layers,)) if stacked else ((), ())
    expert = re.fullmatch(r"mlp\.experts\.(\d+)\.(.+)", layer[2])
    if not expert:
        return Place(prefix + layer[2], index, sizes)
    return Place(f"{prefix}mlp.experts.experts.{expert[2]}", (*index, int(expert[1])), (*sizes, num_experts))


def find_iteration(load_dir: Path, iteration: int | None = None) -> Path:
    """The folder of a saved iteration (None: that of the tracker file). Raises CheckpointError where there is none."""
    tracker = load_dir / TRACKER_NAME
    if not tracker.is_file():
        raise CheckpointError(f"{load_dir} is not a Megatron checkpoint: it has no {TRACKER_NAME}")
    latest = tracker.read_text(errors="replace").strip() if iteration is None else str(iteration)
    if latest != "release" and not re.fullmatch(r"[0-9]{1,18}", latest):
        where = tracker if iteration is None else "--iteration"
        raise CheckpointError(f"{where} {latest[:40]!r}: expected the number of an iteration")
    folder = load_dir / ("release" if latest == "release" else f"iter_{int(latest):07d}")
    if not folder.is_dir():
        present = ", ".join(sorted(path.name for path in load_dir.iterdir() if path.is_dir())) or "nothing"
        raise CheckpointError(f"{load_dir} has no {folder.name}; it has {present}")
    if not (folder / FORMAT_NAME).is_file():
        raise CheckpointError(f"{folder} is not a complete torch_dist checkpoint: it has no {FORMAT_NAME}")
    return folder
