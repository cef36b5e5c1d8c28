"""Norms as modules of their own, where Transformer Engine has them within the linear layers that read them.

Adapters need it: they read what the linear layer reads, which only a norm of its own gives them. The base model's
weights keep the names that they have with fused norms (``conversion/load.py``).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TELayerNormColumnParallelLinear, TENorm
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.transformer_layer import MlpBuilder, TransformerLayerSubmodules

from megatron_mixcpt.models.layer_options.spec_changes import LayerSpecs, change_layers
from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules


def with_separate_norms(spec: LayerSpecs) -> LayerSpecs:
    """The layers with no norm within a linear layer; ``spec`` stays as it is."""
    return change_layers(spec, _separate)


def _separate(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    submodules, mlp = getattr(layer.self_attention, "submodules", None), submodules_of(layer.mlp)
    if has_fused_norm(getattr(submodules, "linear_qkv", None)):
        layer = replace(layer, self_attention=without_fused_norm_in_attention(layer), input_layernorm=TENorm)
    if isinstance(mlp, MLPSubmodules) and has_fused_norm(mlp.linear_fc1):
        layer = replace(layer, mlp=without_fused_norm_in_mlp(layer.mlp), pre_mlp_layernorm=TENorm)
    return layer


def has_fused_norm(linear: Callable[..., Any] | None) -> bool:
    """Whether a linear layer is Transformer Engine's with a norm before it."""
    return linear is TELayerNormColumnParallelLinear


def without_fused_norm_in_attention(layer: TransformerLayerSubmodules) -> Any:
    """A layer's attention, whose linear layer reads its input as it is."""
    attention = layer.self_attention
    projection = _without_norm(attention.submodules.linear_qkv)
    return replace(attention, submodules=replace(attention.submodules, linear_qkv=projection))


def without_fused_norm_in_mlp(mlp: MlpBuilder) -> MlpBuilder:
    """An MLP, whose first linear layer reads its input as it is. Experts stay: the norm before a router is separate."""
    submodules = submodules_of(mlp)
    if not isinstance(submodules, MLPSubmodules):
        return mlp
    return with_submodules(mlp, replace(submodules, linear_fc1=_without_norm(submodules.linear_fc1)))


def _without_norm(linear: Callable[..., Any]) -> Callable[..., Any]:
    """The class of a linear layer without the norm that Transformer Engine fuses into it; both take the same."""
    return TEColumnParallelLinear if has_fused_norm(linear) else linear
