"""Which modules of the engine can have an adapter, and how tensor parallelism divides them.

An adapter belongs to a module as a checkpoint names it, such as ``decoder.layers.5.self_attention.linear_qkv``, with
layers counted from 0 over the whole model.
"""

import re
from collections.abc import Iterable

COLUMN, ROW = "column", "row"

TARGETS = {
    "linear_qkv": COLUMN,
    "linear_proj": ROW,
    "linear_fc1": COLUMN,
    "linear_fc2": ROW,
    "linear_q_proj": COLUMN,
    "linear_q_up_proj": COLUMN,
    "linear_kv_up_proj": COLUMN,
}
"""The last part of a module's name -> which side of its weight [out, in] is divided: the rows of a column-parallel one,
the columns of a row-parallel one. The last three are latent attention's."""

DEFAULT_TARGETS = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")

KEY = "adapters."
"""What a checkpoint's names of adapters begin with."""


def adapted_modules(weights: Iterable[str], targets: Iterable[str]) -> list[str]:
    """The modules that get an adapter, in the order of ``weights``: those of the targets but for routed experts.

    Args:
        weights: names of the engine's tensors, such as ``decoder.layers.0.mlp.linear_fc1.weight``.
        targets: keys of :data:`TARGETS`.
    """
    pattern = re.compile(rf"(.+\.({'|'.join(map(re.escape, targets))}))\.weight")
    found = (pattern.fullmatch(name) for name in weights if ".experts." not in name)
    return [match[1] for match in found if match]


def side_of(module: str) -> str:
    """:data:`COLUMN` or :data:`ROW`."""
    return TARGETS[module.rpartition(".")[2]]


def adapter_keys(module: str) -> tuple[str, str]:
    """A checkpoint's names of A, [rank, in], and B, [out, rank], of a module's adapter."""
    return f"{KEY}{module}.lora_a", f"{KEY}{module}.lora_b"
