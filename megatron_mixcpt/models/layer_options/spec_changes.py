"""A change of every layer of a spec, whichever of the engine's two forms the spec has."""

from collections.abc import Callable
from dataclasses import replace

from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

type LayerSpecs = TransformerBlockSubmodules | ModuleSpec
"""The layers of a stage, or the one that all are built like."""


def change_layers(
    spec: LayerSpecs, change: Callable[[TransformerLayerSubmodules], TransformerLayerSubmodules]
) -> LayerSpecs:
    """The same layers with changed submodules; ``spec`` stays as it is."""
    if isinstance(spec, TransformerBlockSubmodules):
        return replace(spec, layer_specs=[change_layers(layer, change) for layer in spec.layer_specs or ()])
    return replace(spec, submodules=change(spec.submodules))
