"""The activation of Apertus, which has two learned numbers in each layer (transformers' XIELUActivation).

    xIELU(x) = a x^2 + beta x                                       where x > 0, a = softplus(alpha_p)
    xIELU(x) = b (expm1(min(x, eps)) - x) + beta x                  elsewhere, b = beta + softplus(alpha_n)

as in https://arxiv.org/abs/2411.13010. It stands where the engine's MLP takes an activation that is a module, so it
serves any provider's layers. A layer's numbers are saved as ``mlp.activation_func.alpha_p`` and so on.
"""

from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from megatron.core.utils import get_tensor_model_parallel_group_if_none
from torch import Tensor, nn
from torch.nn.functional import softplus

from megatron_mixcpt.models.layer_options.spec_changes import LayerSpecs, change_layers
from megatron_mixcpt.models.mlp_builder import submodules_of, with_submodules
from megatron_mixcpt.models.options import ModelOptions
from megatron_mixcpt.models.parameter_device import parameter_device


def with_xielu(spec: LayerSpecs, options: ModelOptions) -> LayerSpecs:
    """The layers with this activation, where the options name it."""
    return change_layers(spec, _with_xielu) if options.activation == "xielu" else spec


def _with_xielu(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    return replace(layer, mlp=with_submodules(layer.mlp, replace(submodules_of(layer.mlp), activation_func=XIELU)))


class XIELU(nn.Module):
    """One for each layer. ``alpha_p`` and ``alpha_n`` are learned; ``beta`` and ``eps`` come with the checkpoint."""

    def __init__(self, *, config: TransformerConfig) -> None:
        super().__init__()
        self.tp_group = get_tensor_model_parallel_group_if_none(None)
        device = parameter_device(config)
        for name, value in {"alpha_p": 0.8, "alpha_n": 0.3}.items():
            start = torch.tensor([value], dtype=config.params_dtype, device=device).expm1().log()
            self.register_parameter(name, nn.Parameter(start))
        for name, value in {"beta": 0.5, "eps": -1e-6}.items():
            self.register_buffer(name, torch.tensor([value], dtype=config.params_dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, columns of this rank]; each rank's share of the learned numbers' gradients is summed over ranks."""
        alpha_p, alpha_n = (
            copy_to_tensor_model_parallel_region(alpha, group=self.tp_group) for alpha in (self.alpha_p, self.alpha_n)
        )
        negative = (torch.expm1(torch.min(x, self.eps)) - x) * (self.beta + softplus(alpha_n))
        return torch.where(x > 0, softplus(alpha_p) * x * x, negative) + self.beta * x

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """All as copies on the tensor-parallel ranks; the engine's MLP does not say so for a module without this."""
        groups = {"tp_group": self.tp_group, "dp_cp_group": ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"]}
        state = self.state_dict(prefix="", keep_vars=True)
        return make_sharded_tensors_for_checkpoint(state, prefix, {}, sharded_offsets, **groups)
