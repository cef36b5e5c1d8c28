"""A layer's gated delta net in the place of attention, for Qwen3-Next and Qwen3.5.

It computes and is saved as the engine's ``GatedDeltaNet`` (megatron/core/ssm/gated_delta_net), which cannot be built
without flash-linear-attention and, without its kernels, knows no documents. One projection makes queries, keys, values,
the gate z, and two numbers beta and alpha for each head; a short convolution and the gated delta rule mix the tokens::

    q, k, v = silu(convolution(in_proj(x)))        g = -exp(A_log) softplus(alpha + dt_bias)
    y = out_proj(norm(delta_rule(q, k, v, g, sigmoid(beta))) * silu(z))

Tensor parallelism divides the heads: a rank holds its part of every section of the projection. Under context
parallelism the ranks exchange tokens for heads and back (all-to-all), so that each has whole sequences for some heads.
"""

from collections.abc import Sequence
from functools import partial

import torch
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedStateDict, ShardedTensorFactory
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.ssm.gated_delta_net import (
    GatedDeltaNetSubmodules,
    get_parameter_local_cp,
    tensor_a2a_cp2hp,
    tensor_a2a_hp2cp,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.delta_net.convolution import CausalConvolution, causal_convolution
from megatron_mixcpt.models.delta_net.delta_rule import gated_delta_rule
from megatron_mixcpt.models.delta_net.documents import document_starts
from megatron_mixcpt.models.parameter_device import parameter_device

ShardedOffsets = Sequence[tuple[int, int, int]]


class GatedDeltaNet(MegatronModule):
    """The gated delta net of one layer, on this rank's heads.

    Args:
        submodules: the two projections and the norm of each head's output, as the engine's module takes them.
        pg_collection: of which ``tp`` and ``cp`` are used, whose sizes together must divide the heads of keys.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: GatedDeltaNetSubmodules,
        layer_number: int,
        pg_collection: ProcessGroupCollection,
        **unused: object,
    ) -> None:
        super().__init__(config)
        self.layer_number = layer_number
        self.tp_group, self.cp_group = pg_collection.tp, pg_collection.cp
        heads, size = config.linear_num_value_heads, self.tp_group.size()
        keys = config.linear_num_key_heads * config.linear_key_head_dim // size
        values = heads * config.linear_value_head_dim // size
        self.convolved = {"query": keys, "key": keys, "value": values}
        """Sections of the convolution on this rank: name and channels."""
        self.projected = {**self.convolved, "z": values, "beta": heads // size, "alpha": heads // size}
        """Sections of the input projection on this rank."""
        linear = {"config": config, "bias": False, "is_expert": False, "tp_group": self.tp_group}
        self.in_proj = submodules.in_proj(
            config.hidden_size,
            sum(self.projected.values()) * size,
            init_method=config.init_method,
            gather_output=False,
            skip_bias_add=False,
            **linear,
        )
        like = {"device": parameter_device(config), "dtype": config.params_dtype}
        self.conv1d = CausalConvolution(sum(self.convolved.values()), config.linear_conv_kernel_dim, **like)
        self.dt_bias = nn.Parameter(torch.ones(heads // size, **like))
        self.A_log = nn.Parameter(torch.zeros(heads // size, **like))
        for parameter in (self.dt_bias, self.A_log):
            set_tensor_model_parallel_attributes(parameter, True, 0, 1)
        self.out_norm = submodules.out_norm(
            config=config, hidden_size=config.linear_value_head_dim, eps=config.layernorm_epsilon
        )
        self.out_proj = submodules.out_proj(
            values * size,
            config.hidden_size,
            init_method=config.output_layer_init_method,
            input_is_parallel=True,
            skip_bias_add=True,
            **linear,
        )
        recomputed = config.recompute_modules if config.recompute_granularity == "selective" else ()
        self._recomputes_mixing = "core_attn" in recomputed

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **unused: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the tokens of each document.

        Args:
            hidden_states: [s, b, h]; this rank's part of the sequence under sequence and context parallelism.
            attention_mask: None, or of causal attention within documents, see :func:`document_starts`.

        Returns:
            As ``hidden_states``; and no bias.

        Raises:
            ConfigError: for packed sequences, which only Transformer Engine's layers get.
        """
        if packed_seq_params is not None:
            raise ConfigError("gated delta nets take documents as a mask: give --transformer-impl local")
        projected, _ = self.in_proj(hidden_states)
        starts = document_starts(attention_mask, self.cp_group)
        if self._recomputes_mixing and self.training:
            mixed = tensor_parallel.checkpoint(self._mix, False, projected, starts)
        else:
            mixed = self._mix(projected, starts)
        return self.out_proj(mixed)

    def _mix(self, projected: Tensor, starts: Tensor | None) -> Tensor:
        """[s/cp, b, sections of this rank] -> [s/cp, b, values of this rank]."""
        sections = [size // self.cp_group.size() for size in self.projected.values()]
        whole = tensor_a2a_cp2hp(self._by_cp_rank(projected), 0, -1, self.cp_group).transpose(0, 1)
        qkv, z, beta, alpha = whole.split([sum(sections[:3]), *sections[3:]], dim=-1)
        kernel = get_parameter_local_cp(self.conv1d.weight, 0, self.cp_group, list(self.convolved.values()))
        query, key, value = silu(causal_convolution(qkv, kernel, starts)).split(sections[:3], dim=-1)
        value, z = (tensor.unflatten(-1, (-1, self.config.linear_value_head_dim)) for tensor in (value, z))
        query, key = (tensor.unflatten(-1, (-1, self.config.linear_key_head_dim)) for tensor in (query, key))
        rate, dt_bias = (
            get_parameter_local_cp(tensor, 0, self.cp_group).float() for tensor in (self.A_log, self.dt_bias)
        )
        decay = -rate.exp() * softplus(alpha.float() + dt_bias)
        deterministic = self.config.deterministic_mode
        output = gated_delta_rule(query, key, value, decay, beta.sigmoid(), starts, deterministic=deterministic)
        output = (self.out_norm(output) * silu(z.float())).type_as(output)
        return tensor_a2a_hp2cp(output.flatten(-2).transpose(0, 1).contiguous(), 0, -1, self.cp_group)

    def _by_cp_rank(self, projected: Tensor) -> Tensor:
        """Each context-parallel rank's part of every section, then the next one's, where there are several."""
        if (size := self.cp_group.size()) == 1:
            return projected
        parts = projected.split(list(self.projected.values()), dim=-1)
        return torch.cat([part.unflatten(-1, (size, -1)) for part in parts], dim=-1).flatten(-2)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: ShardedOffsets = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """As the engine's module: the sections of a tensor have keys of their own, split over tensor parallel ranks."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        replica_id = (0, 0, ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"].rank())
        offsets = tuple(sharded_offsets)
        for name in ("dt_bias", "A_log"):
            state[prefix + name] = self._shard(offsets, prefix + name, getattr(self, name), replica_id)
        for name, tensor, sections in (
            ("in_proj.weight", self.in_proj.weight, self.projected),
            ("conv1d.weight", self.conv1d.weight, self.convolved),
        ):
            build = partial(self._shards, offsets, sections)
            state[prefix + name] = ShardedTensorFactory(prefix + name, tensor, build, torch.cat, replica_id)
        return state

    def _shards(
        self,
        offsets: ShardedOffsets,
        sections: dict[str, int],
        key: str,
        tensor: Tensor,
        replica_id: ReplicaId,
        flattened_range: slice | None,
    ) -> list[ShardedTensor]:
        """One for each section."""
        assert flattened_range is None
        parts = zip(sections, tensor.split(list(sections.values())), strict=True)
        return [self._shard(offsets, f"{key}.{name}", part, replica_id) for name, part in parts]

    def _shard(self, offsets: ShardedOffsets, key: str, tensor: Tensor, replica_id: ReplicaId) -> ShardedTensor:
        """This rank's rows of the tensor of all ranks."""
        place = (len(offsets), self.tp_group.rank(), self.tp_group.size())
        return ShardedTensor.from_rank_offsets(
            key, tensor, *offsets, place, replica_id=replica_id, prepend_axis_num=len(offsets)
        )
