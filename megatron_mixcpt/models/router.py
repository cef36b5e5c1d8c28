"""The engine's router with auxiliary losses that count as the microbatch counts in the loss; see
``auxiliary_losses.py``.

A frozen teacher, DPO's reference and a validation have none: the engine computes them in training mode and with
gradients alone.
"""

from collections import deque

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.models.auxiliary_losses import AUXILIARY_LOSSES, Z_LOSS, Microbatch
from megatron_mixcpt.models.layer_options.expert_groups import ExpertGroups
from megatron_mixcpt.models.options import options_of

_NOT_TRAINED = Microbatch(0.0, None)


class Router(TopKRouter):
    """Chooses experts as the engine's router does, and among groups of experts as transformers does.

    A bias in the choice (``expert_bias``) stays as the model folder has it: it is no parameter, and is not adjusted. A
    bias of the scores (``router_bias`` of the model's options) is one, and is trained.
    """

    def __init__(
        self,
        config: TransformerConfig,
        pg_collection: ProcessGroupCollection | None = None,
        is_mtp_layer: bool = False,
    ) -> None:
        super().__init__(config, pg_collection, is_mtp_layer)
        self.frozen_expert_bias = True
        if (num_scored := options_of(config).router_group_experts) is not None:
            self._score_groups_by(num_scored)
        if options_of(config).router_bias:
            self.bias = torch.nn.Parameter(torch.zeros_like(self.weight[:, 0]))
            self.bias.sequence_parallel = config.sequence_parallel
        self._microbatch = _NOT_TRAINED
        self._to_recompute: deque[Microbatch] = deque()

    def _score_groups_by(self, num_scored: int) -> None:
        """Let ``num_scored`` experts decide on a group where the engine, by its rule, takes another number.

        Raises ConfigError where a kernel chooses, which has the engine's rule.
        """
        chosen = self.config.moe_router_group_topk
        if chosen is None or self.topk // chosen == num_scored:
            return
        if self.config.moe_router_fusion:
            raise ConfigError(
                f"--moe-router-fusion: its kernel scores a group of experts by the best {self.topk // chosen}, the "
                f"model by the best {num_scored}: remove it"
            )
        self.router_replay = ExpertGroups(num_scored)

    def forward(self, input: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Route ``input`` [s, b, h]; returns the chosen experts' weights and which they are, [s * b, experts] both."""
        self._microbatch = self._microbatch_of_this_call()
        return super().forward(input, self._microbatch.padding)

    def _microbatch_of_this_call(self) -> Microbatch:
        """The microbatch under way; where activations are recomputed, an earlier one.

        Recomputation calls twice: in the forward pass without gradients, and in the backward pass with them, when a
        pipeline may have begun other microbatches. Each chunk of layers takes both in the same order.
        """
        if not self.training:
            return _NOT_TRAINED
        if not torch.is_grad_enabled():
            self._to_recompute.append(AUXILIARY_LOSSES.microbatch)
        elif self._to_recompute:
            return self._to_recompute.popleft()
        return AUXILIARY_LOSSES.microbatch

    def apply_input_jitter(self, input: Tensor) -> Tensor:
        """Noise on ``input`` in training alone (``--moe-input-jitter-eps``): the engine adds it in validations too."""
        return super().apply_input_jitter(input) if self.training else input

    def attach_and_log_load_balancing_loss(
        self,
        activation: Tensor,
        aux_loss_coeff: float,
        aux_loss: Tensor,
        aux_loss_name: str,
        reduce_group: ProcessGroup,
        needs_dp_avg: bool = True,
        valid_token_count: int | Tensor | None = None,
    ) -> Tensor:
        """Add the gradient of ``aux_loss``, this rank's part of a sum over ``reduce_group``, in ``activation``'s.

        Returns ``activation``.
        """
        assert self.layer_number is not None
        weight, size = self._microbatch.weight, reduce_group.size()
        AUXILIARY_LOSSES.add(aux_loss_name, self.layer_number, aux_loss / aux_loss_coeff, weight, size)
        return MoEAuxLossAutoScaler.apply(activation, aux_loss * weight)

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Add the gradient of the mean square of the logits' log-sum-exp (ST-MoE, arXiv:2202.08906, Eq. 5).

        Args:
            logits: [s * b, experts].
            padding_mask: bool [s * b], True where a position does not count.

        Returns:
            ``logits``.
        """
        coefficient = self.config.moe_z_loss_coeff
        if coefficient is None or not (self.training and torch.is_grad_enabled()):
            return logits
        assert self.layer_number is not None
        squares, size = logits.logsumexp(-1).square(), self.tp_cp_group.size()
        if padding_mask is None:
            z_loss = squares.mean() / size
        else:
            num_tokens = (~padding_mask).sum()
            dist.all_reduce(num_tokens, group=self.tp_cp_group)
            z_loss = squares.masked_fill(padding_mask, 0.0).sum() / num_tokens
        AUXILIARY_LOSSES.add(Z_LOSS, self.layer_number, z_loss, self._microbatch.weight, size)
        return MoEAuxLossAutoScaler.apply(logits, coefficient * self._microbatch.weight * z_loss)
