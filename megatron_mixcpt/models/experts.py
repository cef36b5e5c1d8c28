"""The experts of a mixture without Transformer Engine: all experts of a rank in two grouped products for each layer.

A rank's experts are one parameter in each of the two layers, which the products read as it is. In a checkpoint they are
the tensors of the engine's ``SequentialMLP`` and of Transformer Engine's grouped layers, so that checkpoints are
interchangeable.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ReplicaId, ShardedStateDict, ShardedTensorFactory
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_expert_parallel_rng_tracker_name
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.grouped_linear import grouped_linear
from megatron_mixcpt.models.layer_options.expert_bias import add_expert_bias
from megatron_mixcpt.models.options import options_of
from megatron_mixcpt.models.parameter_device import parameter_device

ShardedOffsets = Sequence[tuple[int, int, int]]


class GroupedExperts(MegatronModule):
    """The experts of one layer on this rank, in the place of the engine's ``SequentialMLP`` (``ExpertsInterface``).

    Its ranks communicate nothing. Where an expert is divided over the expert tensor-parallel group, each rank gets the
    rows of all and returns partial sums: the token dispatcher gathers and adds up.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: TransformerConfig,
        /,
        *,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        """Raises ConfigError for biases that the engine's flags ask for: those of a model are its options'."""
        super().__init__(config)
        del name  # for the engine's profiles
        if config.add_bias_linear:
            raise ConfigError("--num-experts needs --disable-bias-linear: biases of experts are the model folder's")
        inner = config.moe_ffn_hidden_size
        assert inner is not None  # the engine takes ffn_hidden_size where it is not given
        first = (num_local_experts, 2 * inner if config.gated_linear_unit else inner, config.hidden_size)
        self.linear_fc1 = ExpertsLinear(first, 1, config, config.init_method, pg_collection)
        second = (num_local_experts, config.hidden_size, inner)
        self.linear_fc2 = ExpertsLinear(second, 2, config, config.output_layer_init_method, pg_collection)
        recomputed = config.recompute_modules if config.recompute_granularity == "selective" else ()
        self._recomputes_activation = "moe_act" in recomputed

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probabilities: Tensor) -> tuple[Tensor, None]:
        """Each expert's MLP over its rows, times the router's weight of each row.

        Args:
            x: [t, h], sorted by expert.
            tokens_per_expert: int64 [e], which the token dispatcher has copied to the host.
            probabilities: [t], the router's weights.

        Returns:
            [t, h], and no bias.
        """
        counts = tokens_per_expert.tolist()
        if self.config.moe_apply_probs_on_input:
            x = (x * probabilities[:, None]).to(x.dtype)
            probabilities = torch.ones_like(probabilities)
        hidden = self.linear_fc1(x, counts)
        if self._recomputes_activation and torch.is_grad_enabled():
            # Recomputation stops once it has what the backward pass needs: the second product does not run again.
            return checkpoint(self._second_half, hidden, counts, probabilities, use_reentrant=False), None
        return self._second_half(hidden, counts, probabilities), None

    def _second_half(self, hidden: Tensor, counts: list[int], probabilities: Tensor) -> Tensor:
        return self.linear_fc2(self._activate(hidden, probabilities[:, None]), counts, probabilities)

    def _activate(self, hidden: Tensor, probabilities: Tensor) -> Tensor:
        """As in the engine's MLP, where the router's weights scale the second layer's input."""
        config = self.config
        if config.gated_linear_unit and config.activation_func is silu and config.bias_activation_fusion:
            return weighted_bias_swiglu_impl(hidden, None, probabilities, config.activation_func_fp8_input_store)
        if config.gated_linear_unit:
            gate, up = hidden.chunk(2, dim=-1)
            if (limit := config.activation_func_clamp_value) is not None:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            hidden = config.activation_func(gate) * (up + config.glu_linear_offset)
        else:
            hidden = config.activation_func(hidden)
        return (hidden * probabilities).to(hidden.dtype)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: ShardedOffsets = (), metadata: dict | None = None
    ) -> ShardedStateDict:
        """This rank's experts under the names of the engine's, as parts of all experts of the layer."""
        del metadata
        layers = {"linear_fc1": self.linear_fc1, "linear_fc2": self.linear_fc2}
        return {
            f"{prefix}{name}.{kind}": layer.sharded(parameter, f"{prefix}experts.{name}.{kind}", sharded_offsets)
            for name, layer in layers.items()
            for kind, parameter in layer.named_parameters()
        }


class ExpertsLinear(nn.Module):
    """One linear map for each expert of this rank.

    ``weight``: [e, n, k], of whose n rows (``split_axis`` 1) or k columns (2) each rank of the expert tensor-parallel
    group holds its part; of a gated layer [gate; up], its part of each half. ``bias``: [e, n] where the model's options
    have one, divided with the rows.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        split_axis: int,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any] | None,
        groups: ProcessGroupCollection,
    ) -> None:
        """``shape``: experts on this rank, and rows and columns of a whole expert."""
        super().__init__()
        self._split_axis, self._groups = split_axis, groups
        self._halves = 2 if config.gated_linear_unit and split_axis == 1 else 1
        sizes = [size // groups.expt_tp.size() if axis == split_axis else size for axis, size in enumerate(shape)]
        device = parameter_device(config)
        self.weight = nn.Parameter(torch.empty(sizes, device=device, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, split_axis, self._halves)
        self.bias = nn.Parameter(self.weight.new_zeros(sizes[:2])) if options_of(config).mlp_bias else None
        if self.bias is not None:
            # Undivided, and the same on all ranks, only if no rank but one holds its experts.
            divided = split_axis == 1 or groups.expt_tp.size() == 1
            set_tensor_model_parallel_attributes(self.bias, divided, 1, self._halves)
        for parameter in self.parameters():
            parameter.allreduce = not _reduces_apart(config)
        if config.perform_initialization and init_method is not None:
            with get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name()):
                init_method(self.weight)

    def forward(self, x: Tensor, tokens_per_expert: Sequence[int], weights: Tensor | None = None) -> Tensor:
        """[t, k] sorted by expert -> [t, n]; ``weights`` [t] are what the biases are multiplied by."""
        product = grouped_linear(x, self.weight, tokens_per_expert)
        if self.bias is None:
            return product
        ranks = 1 if self._split_axis == 1 else self._groups.expt_tp.size()
        return add_expert_bias(product, self.bias, tokens_per_expert, weights, ranks)

    def sharded(self, parameter: Tensor, key: str, outer: ShardedOffsets) -> ShardedTensorFactory:
        """A parameter as a part of ``key`` in the checkpoint, of all ranks: [..., experts, n, k], or without k."""
        is_divided = self._split_axis < parameter.dim()
        replica_id = (0, 0 if is_divided else self._groups.expt_tp.rank(), self._groups.expt_dp.rank())
        build = partial(self._shards, tuple(outer))
        return ShardedTensorFactory(key, parameter, build, partial(torch.cat, dim=1), replica_id)

    def _shards(
        self, outer: ShardedOffsets, key: str, parameter: Tensor, replica_id: ReplicaId, flattened_range: slice | None
    ) -> list[ShardedTensor]:
        """One for each half: over all ranks, a gated layer is [gate of all; up of all]."""
        assert flattened_range is None
        experts, tensor, halves = self._groups.ep, self._groups.expt_tp, self._halves
        first_axis = len(outer)
        shards = []
        for half, part in enumerate(parameter.chunk(halves, dim=1)):
            place = half * tensor.size() + tensor.rank()
            offsets = [(first_axis, experts.rank(), experts.size())]
            if self._split_axis < parameter.dim():
                offsets.append((first_axis + self._split_axis, place, halves * tensor.size()))
            shard = ShardedTensor.from_rank_offsets(
                key, part, *outer, *offsets, replica_id=replica_id, prepend_axis_num=first_axis
            )
            shards.append(shard)
        return shards


def _reduces_apart(config: TransformerConfig) -> bool:
    """Whether other ranks hold copies of a rank's experts than of its other layers; their gradients go apart then."""
    return (
        config.expert_model_parallel_size > 1 or config.expert_tensor_parallel_size != config.tensor_model_parallel_size
    )
