"""RMSNorm of queries and keys over all heads of the model together: OLMo 2 and 3 (transformers' Olmo2Attention).

Tensor parallelism divides the heads, so the mean of squares needs one all-reduce, of a number for each token. Each rank
holds the weight of all heads and multiplies by its part: what the engine then does with the gradients of all norms of
query and key, a sum over the tensor-parallel ranks, puts the parts together.
"""

from dataclasses import replace
from functools import partial

import torch
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.utils import get_tensor_model_parallel_group_if_none
from torch import Tensor, nn

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.layer_options.spec_changes import LayerSpecs, change_layers
from megatron_mixcpt.models.norm import build_norm
from megatron_mixcpt.models.options import ModelOptions


def with_norms_over_heads(spec: LayerSpecs, options: ModelOptions) -> LayerSpecs:
    """The layers with such norms, where the options ask for them, in the places of those over each head."""
    return change_layers(spec, _with_norms_over_heads) if options.qk_norm_over_heads else spec


def _with_norms_over_heads(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    norms = {"q_layernorm": partial(NormOverHeads, of="query"), "k_layernorm": partial(NormOverHeads, of="key")}
    attention = layer.self_attention
    return replace(layer, self_attention=replace(attention, submodules=replace(attention.submodules, **norms)))


class NormOverHeads(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the mean over the channels of all heads.

    Args:
        of: ``"query"`` or ``"key"``, which decides the number of heads.
        hidden_size: channels of a head.

    Raises:
        ConfigError: more tensor-parallel ranks than heads of keys, which would count a key more than once.
    """

    def __init__(self, *, config: TransformerConfig, hidden_size: int, of: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.tp_group = get_tensor_model_parallel_group_if_none(None)
        heads = config.num_attention_heads if of == "query" else config.num_query_groups
        if heads % self.tp_group.size():
            raise ConfigError(
                f"--tensor-model-parallel-size {self.tp_group.size()}: this model's norm over all heads needs a "
                f"divisor of its {heads} heads of {'queries' if of == 'query' else 'keys'}"
            )
        self.eps = eps
        self.weight = build_norm(config=config, hidden_size=heads * hidden_size).weight

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, heads of this rank, channels], of the weight's dtype; computed in float32 and rounded once."""
        wide = x.float()
        num_channels = self.weight.numel()
        # Forward sums over the ranks; so does backward, since what each rank makes of the sum differs.
        squares = wide.square().sum((-2, -1), keepdim=True)
        squares = copy_to_tensor_model_parallel_region(
            reduce_from_tensor_model_parallel_region(squares, group=self.tp_group), group=self.tp_group
        )
        normed = wide * torch.rsqrt(squares / num_channels + self.eps)
        return (normed * self._weight_of_rank(x)).to(x.dtype)

    def _weight_of_rank(self, x: Tensor) -> Tensor:
        """[heads of this rank, channels]; ranks hold consecutive heads."""
        heads = self.weight.view(-1, x.size(-1))
        return heads.narrow(0, self.tp_group.rank() * x.size(-2), x.size(-2))
