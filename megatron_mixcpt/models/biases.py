"""Biases that the engine's configuration cannot name one by one: of attention's output and of an MLP's two layers.

The engine has a bias either in every linear layer (``add_bias_linear``) or in none, but for query, key and value
(``add_qkv_bias``). Here the builders of the layers that have one in transformers are asked for it, whichever provider
they come from. The engine does the rest with whatever bias its layers return: it is added once, after the sum over
tensor-parallel ranks, and its gradient is summed over the parts of the sequence where sequence parallelism divides it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import MlpBuilder, TransformerLayerSubmodules

from megatron_mixcpt.models.layer_options.spec_changes import change_layers
from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules
from megatron_mixcpt.models.options import ModelOptions


def with_biases(
    spec: TransformerBlockSubmodules | ModuleSpec, options: ModelOptions
) -> TransformerBlockSubmodules | ModuleSpec:
    """The layers of a stage, or the one that all are built like, with the biases of ``options``.

    ``spec`` stays as it is. Experts take their biases from the same options themselves (``experts.py``).
    """
    if not options.attention_output_bias and not options.mlp_bias:
        return spec
    return change_layers(spec, lambda layer: _layer_with_biases(layer, options))


def _layer_with_biases(layer: TransformerLayerSubmodules, options: ModelOptions) -> TransformerLayerSubmodules:
    if options.attention_output_bias:
        attention = layer.self_attention
        projection = _with_bias(attention.submodules.linear_proj)
        attention = replace(attention, submodules=replace(attention.submodules, linear_proj=projection))
        layer = replace(layer, self_attention=attention)
    return replace(layer, mlp=_with_biases_in_mlp(layer.mlp)) if options.mlp_bias else layer


def _with_biases_in_mlp(mlp: MlpBuilder) -> MlpBuilder:
    submodules = submodules_of(mlp)
    if not isinstance(submodules, MLPSubmodules):
        return mlp
    layers = {name: _with_bias(getattr(submodules, name)) for name in ("linear_fc1", "linear_fc2")}
    return with_submodules(mlp, replace(submodules, **layers))


def _with_bias(build: Callable[..., Any]) -> Callable[..., Any]:
    """The builder of a linear layer, which has a bias whatever the engine asks for."""

    def build_with_bias(*sizes: int, **arguments: Any) -> Any:
        return build(*sizes, **{**arguments, "bias": True})

    return build_with_bias
