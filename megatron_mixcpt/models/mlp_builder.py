"""What the engine builds a layer's MLP or experts with: a ``functools.partial`` that has the submodules by name."""

from functools import partial
from typing import Any

from megatron.core.transformer.transformer_layer import MlpBuilder


def submodules_of(mlp: MlpBuilder) -> Any:
    """What the MLP is built of; None for a builder of another kind."""
    return mlp.keywords["submodules"] if isinstance(mlp, partial) else None


def with_submodules(mlp: MlpBuilder, submodules: Any) -> MlpBuilder:
    """The same builder of other submodules; ``mlp`` stays as it is, and must be one that has some."""
    assert isinstance(mlp, partial)
    return partial(mlp.func, *mlp.args, **mlp.keywords | {"submodules": submodules})
