"""Where a branch, attention or the MLP, has norms, and what it is multiplied by: x + m * norm(f(x)).

Some models have a norm after each branch beside the one before it (GLM-4, Gemma), others only after it (OLMo 2 and 3,
EXAONE 4); Granite multiplies what a branch adds. What comes after a branch stands where the engine has its function
that adds the branch to the residual stream, so it serves any attention, any MLP and experts, of any provider's layers.
A layer's norms after its branches are saved as ``self_attn_bda.norm.weight`` and ``mlp_bda.norm.weight``.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_mixcpt.models.layer_options.separate_norms import (
    without_fused_norm_in_attention,
    without_fused_norm_in_mlp,
)
from megatron_mixcpt.models.layer_options.spec_changes import LayerSpecs, change_layers
from megatron_mixcpt.models.norm import build_norm
from megatron_mixcpt.models.options import options_of

WithBias = tuple[Tensor, Tensor | None]
"""A branch's output [s, b, h] and a bias [h] that is yet to be added to it."""
Join = Callable[[WithBias, Tensor, float], Tensor]
"""Adds a branch's output to the residual stream [s, b, h], after dropout of the given probability."""


def with_branches(spec: LayerSpecs, config: TransformerConfig) -> LayerSpecs:
    """The layers with the norms and the multiplier that the options ask for; ``spec`` stays as it is."""
    options = options_of(config)
    if not options.pre_norms:
        spec = change_layers(spec, _without_pre_norms)
    if options.post_norms or options.residual_multiplier != 1.0:
        end = ModuleSpec(module=BranchEnd, params={"config": config})
        spec = change_layers(spec, lambda layer: replace(layer, self_attn_bda=end, mlp_bda=end))
    return spec


def _without_pre_norms(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    attention, mlp = without_fused_norm_in_attention(layer), without_fused_norm_in_mlp(layer.mlp)
    return replace(layer, input_layernorm=IdentityOp, self_attention=attention, pre_mlp_layernorm=IdentityOp, mlp=mlp)


class BranchEnd(nn.Module):
    """The engine's ``get_bias_dropout_add`` with a norm and a multiplier before it.

    Under sequence parallelism each rank norms its own part of the sequence, and the weight is marked like those of
    other norms, so that the engine sums its gradient over the tensor-parallel ranks.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        options = options_of(config)
        self.multiplier = options.residual_multiplier
        self.norm: nn.Module | None = None
        if options.post_norms:
            self.norm = build_norm(config=config, hidden_size=config.hidden_size, eps=config.layernorm_epsilon)

    def forward(self, training: bool, fused: bool) -> Join:
        """The function that joins, arguments as of ``get_bias_dropout_add``."""
        return partial(self._join, training=training, join=get_bias_dropout_add(training, fused))

    def _join(self, output: WithBias, residual: Tensor, dropout: float, *, training: bool, join: Join) -> Tensor:
        """The engine calls with gradients enabled, in evaluation too, where they would only keep tensors."""
        with torch.set_grad_enabled(training or output[0].requires_grad or residual.requires_grad):
            return join((self._ended(*output), None), residual, dropout)

    def _ended(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None:
            x = x + bias
        if self.norm is not None:
            x = self.norm(x)
        return x if self.multiplier == 1.0 else x * self.multiplier
