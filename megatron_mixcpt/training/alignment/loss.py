"""From log-probabilities of response tokens to what the engine trains on and reports: SFT (Eq. 10) and DPO (Eq. 11).

Sums and counts leave the last stage; the engine adds them over microbatches and data parallel ranks and divides once.
So SFT is a mean over all response tokens of the global batch, and DPO one over all its pairs, whatever the layout.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_mixcpt.distillation.log_probs_head import LogProbs
from megatron_mixcpt.log_names import ACCURACY, LOSS, REWARD_MARGIN
from megatron_mixcpt.losses.dpo import dpo_loss
from megatron_mixcpt.models.context_parallel import sum_over_shares

LossFunc = Callable[[tuple[Tensor, ...]], tuple[Tensor, Tensor, dict[str, Tensor]]]


def sft_loss_func(loss_mask: Tensor, output: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The engine's ``loss_func`` of SFT.

    Args:
        loss_mask: float32 [b, s], 1 where the token belongs to a response.
        output: the fields of :class:`LogProbs`.

    Returns:
        The summed loss, the number of response tokens (int32), and ``loss`` as sum and count, float32 [2].
    """
    loss, num_tokens = -LogProbs(*output).policy.sum(), loss_mask.sum()
    return loss, num_tokens.to(torch.int32), {LOSS: torch.stack([loss.detach(), num_tokens])}


def dpo_loss_func(
    document: Tensor,
    num_documents: int,
    reference_sums: Tensor | None,
    output: tuple[Tensor, ...],
    *,
    beta: float,
    loss_type: Literal["sigmoid", "ipo"],
    label_smoothing: float,
    sft_coefficient: float,
    cp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The engine's ``loss_func`` of DPO.

    Args:
        document: int64 [b, s], the document in its row that a response token belongs to, chosen and rejected in turn;
            ``num_documents`` for other tokens. s is this context-parallel rank's share of the row.
        num_documents: room for documents in a row, even.
        reference_sums: float32 [b, num_documents], the reference's log-probabilities of whole responses where they
            were computed before; None: they are in ``output``.
        output: the fields of :class:`LogProbs`.
        beta, loss_type, label_smoothing: as in ``losses.dpo.dpo_loss``.
        sft_coefficient: factor of the chosen responses' mean loss per token, added to each pair's loss.
        cp_group: the ranks that share the rows; None: none do. Each computes the pairs of whole documents, and the
            first counts them.

    Returns:
        The summed loss, the number of pairs (int32), and for each reported key its sum and count, float32 [2].
    """
    log_probs = LogProbs(*output)
    tokens = (log_probs.policy.transpose(0, 1), log_probs.reference.transpose(0, 1), torch.ones_like(document).float())
    sums = torch.stack([_document_sums(values, document, num_documents) for values in tokens])
    policy, reference, lengths = sum_over_shares(sums, cp_group).unbind()
    reference = reference if reference_sums is None else reference_sums
    present = (lengths[:, 0::2] > 0).float()
    num_pairs = present.sum()
    per_token = 1 / lengths.clamp(min=1)
    scale = per_token if loss_type == "ipo" else torch.ones_like(lengths)
    pairs = dpo_loss(
        *((sums * scale)[:, side::2] for sums in (policy, reference) for side in (0, 1)),
        beta=beta,
        label_smoothing=label_smoothing,
        loss_type=loss_type,
    )
    loss = pairs.loss - sft_coefficient * (policy * per_token)[:, 0::2] if sft_coefficient else pairs.loss
    total = (loss * present).sum()
    if cp_group is not None and cp_group.rank() > 0:
        present, num_pairs = torch.zeros_like(present), torch.zeros_like(num_pairs)
    figures = {
        LOSS: loss.detach(),
        "chosen reward": pairs.chosen_reward,
        "rejected reward": pairs.rejected_reward,
        REWARD_MARGIN: pairs.margin,
        ACCURACY: pairs.accuracy,
        "chosen log-probability": policy[:, 0::2].detach(),
        "rejected log-probability": policy[:, 1::2].detach(),
    }
    report = {key: torch.stack([(values * present).sum(), num_pairs]) for key, values in figures.items()}
    return total, num_pairs.to(torch.int32), report


def _document_sums(values: Tensor, document: Tensor, num_documents: int) -> Tensor:
    """Sums over each document of a row, float32 [b, num_documents]."""
    sums = values.new_zeros((len(values), num_documents + 1))
    return sums.scatter_add(1, document, values)[:, :num_documents]
