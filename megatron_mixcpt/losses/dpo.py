"""Direct preference optimization (Rafailov et al. 2023, Eq. 7; Mix-CPT, Eq. 11) on responses' log-probabilities.

``vocab_parallel_log_probs`` gives each token's log-probability from sharded logits; the caller adds up a response's
tokens (and, for ``ipo``, divides by their number); ``dpo_loss`` compares the policy's pairs with the reference model's.
"""

from typing import Literal, NamedTuple

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_mixcpt.losses.cross_entropy import vocab_parallel_cross_entropy
from megatron_mixcpt.losses.logit_scaling import UNSCALED, LogitScaling


class DPOLoss(NamedTuple):
    """Per pair, float32 ``[pairs]``. Only ``loss`` has a gradient; ``accuracy`` is 1 where the margin is positive."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor
    accuracy: Tensor


def vocab_parallel_log_probs(
    logits: Tensor,
    labels: Tensor,
    *,
    tp_group: dist.ProcessGroup | None,
    vocab_size: int | None = None,
    inplace: bool = False,
    scaling: LogitScaling = UNSCALED,
) -> Tensor:
    """log softmax(logits)[label] of every token in nats, float32, the labels' shape; differentiable in ``logits``.

    Arguments, errors and collectives are those of ``cross_entropy.vocab_parallel_cross_entropy``: one all-gather of 12
    bytes per token and rank forward, none backward. A label outside ``[0, vocab_size)`` gives 0.
    """
    return -vocab_parallel_cross_entropy(
        logits, labels, tp_group=tp_group, vocab_size=vocab_size, inplace=inplace, scaling=scaling
    )


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid",
) -> DPOLoss:
    """The preference loss of each pair from the log-probabilities of its two responses, all ``[pairs]``, in nats.

    With h = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected) and a reward of
    beta * (policy - reference), whose margin is beta * h:

        sigmoid: -(1 - label_smoothing) * log sigmoid(beta h) - label_smoothing * log sigmoid(-beta h)
                 (label_smoothing: the share of pairs labelled the wrong way round, Mitchell 2023)
        ipo:     (h - 1 / (2 beta))^2, on log-probabilities per token (Azar et al. 2023, Eq. 17)

    Where policy and reference agree, h = 0 and the sigmoid loss is log 2, whatever beta.

    Raises:
        ValueError: if ``loss_type`` is neither, or ``label_smoothing`` is not in [0, 0.5) or given with ``ipo``.
    """
    if loss_type not in ("sigmoid", "ipo"):
        raise ValueError(f"loss_type {loss_type!r} is neither 'sigmoid' nor 'ipo'")
    if not 0 <= label_smoothing < 0.5 or (label_smoothing and loss_type == "ipo"):
        raise ValueError(f"label_smoothing {label_smoothing} is not in [0, 0.5), or given with ipo, which has none")
    chosen_reward = beta * (policy_chosen.float() - reference_chosen.float())
    rejected_reward = beta * (policy_rejected.float() - reference_rejected.float())
    margin = chosen_reward - rejected_reward
    if loss_type == "sigmoid":
        loss = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    else:
        loss = (margin / beta - 1 / (2 * beta)) ** 2
    rewards = chosen_reward.detach(), rejected_reward.detach(), margin.detach()
    return DPOLoss(loss, *rewards, (margin.detach() > 0).float())
