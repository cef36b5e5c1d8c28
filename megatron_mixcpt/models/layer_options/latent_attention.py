"""Latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; DeepSeek-V3, Moonlight, Kimi K2), without Transformer
Engine.

Keys and values of all heads are made of one short vector of each token, and of channels for the rotary embedding that
all heads share; queries too where ``q_lora_rank`` is given. The engine's attention does this around three modules that
are built here:

- The projections down to the short vectors are whole on every tensor-parallel rank, as Transformer Engine's are. Those
  that the engine has without it divide the vectors' channels, and the gradient of the shared rotary channels then lacks
  what the other ranks' heads contribute.
- The norms of the short vectors have an epsilon of their own in transformers, and there is one of the keys and values
  where there is none of the queries, which the engine's configuration cannot say.
- The rotary embedding is transformers', one for all layers of a stage; see ``rotary.py``.
"""

from typing import Any

import torch
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.multi_latent_attention import MLASelfAttention, MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import MLATransformerConfig
from torch import Tensor, nn
from torch.nn.functional import linear

from megatron_mixcpt.models.norm import build_norm
from megatron_mixcpt.models.options import options_of
from megatron_mixcpt.models.parameter_device import parameter_device

FUSED_NORM_NAMES = {
    "self_attention.q_layernorm.": "self_attention.linear_q_up_proj.layer_norm_",
    "self_attention.kv_layernorm.": "self_attention.linear_kv_up_proj.layer_norm_",
}
"""Names of the short vectors' norms, and what checkpoints call them, as Transformer Engine fuses them."""


class LatentAttention(MLASelfAttention):
    """The engine's attention with modules of its own for what makes the short vectors."""

    def __init__(
        self,
        config: MLATransformerConfig,
        submodules: MLASelfAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.causal,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        pp_layer_offset: int | None = None,
        name: str | None = None,
    ) -> None:
        assert not config.qk_layernorm, "the norms of the short vectors are built here"
        super().__init__(
            config, submodules, layer_number, attn_mask_type, cp_comm_type, pg_collection, pp_layer_offset, name
        )
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = WholeLinear(config.hidden_size, config.q_lora_rank, config)
            self.q_layernorm = _latent_norm(config.q_lora_rank, config)
        rank = config.kv_lora_rank
        self.linear_kv_down_proj = WholeLinear(config.hidden_size, rank + config.qk_pos_emb_head_dim, config)
        self.kv_layernorm = _latent_norm(rank, config)


class WholeLinear(nn.Module):
    """A linear map without a bias that every tensor-parallel rank holds whole.

    Under sequence parallelism each rank maps its own part of the sequence, and the weight is marked so that the engine
    sums its gradient over the ranks.
    """

    def __init__(self, num_inputs: int, num_outputs: int, config: MLATransformerConfig) -> None:
        super().__init__()
        device = parameter_device(config)
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs, dtype=config.params_dtype, device=device))
        self.weight.sequence_parallel = config.sequence_parallel
        if config.perform_initialization and config.init_method is not None:
            config.init_method(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[s, b, inputs] -> [s, b, outputs], and no bias; s of this rank."""
        return linear(x, self.weight), None


def latent_attention(provider: LocalSpecProvider) -> ModuleSpec:
    """Latent attention of the provider's modules."""
    column, core = provider.column_parallel_linear(), provider.core_attention()
    submodules = MLASelfAttentionSubmodules(
        linear_q_proj=column,
        linear_q_down_proj=column,
        linear_q_up_proj=column,
        linear_kv_down_proj=column,
        linear_kv_up_proj=column,
        core_attention=core,
        linear_proj=provider.row_parallel_linear(),
        q_layernorm=IdentityOp,
        kv_layernorm=IdentityOp,
    )
    return ModuleSpec(module=LatentAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=submodules)


def _latent_norm(size: int, config: MLATransformerConfig) -> Any:
    epsilon = options_of(config).latent_norm_epsilon
    return build_norm(config=config, hidden_size=size, eps=config.layernorm_epsilon if epsilon is None else epsilon)
