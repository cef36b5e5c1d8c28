"""The flags of DPO's loss arrive in it: compared with the formulas written down for two pairs."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from megatron_mixcpt.config import DPOConfig
from megatron_mixcpt.training.alignment import dpo
from megatron_mixcpt.training.alignment.run import Rows

BETA = 0.2
# Of four documents in a row: chosen and rejected of two pairs, with as many response tokens.
NUM_TOKENS = (3, 2, 1, 4)


def row() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(documents [1, s], policy's log-probabilities [s, 1], reference's): a prompt token before each response."""
    documents: list[int] = []
    for number, count in enumerate(NUM_TOKENS):
        documents += [4] + [number] * count
    generator = torch.Generator().manual_seed(0)
    policy, reference = -torch.rand(2, len(documents), 1, generator=generator)
    is_response = torch.tensor(documents)[:, None] < 4
    return torch.tensor([documents]), policy * is_response, reference * is_response


def sums(values: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Of each document [pairs, 2]."""
    return torch.stack([values[:, 0][documents[0] == number].sum() for number in range(4)]).view(2, 2)


def loss_of(**flags) -> torch.Tensor:
    """The summed loss that the trainer makes of the row."""
    documents, policy, reference = row()
    run = SimpleNamespace(config=DPOConfig(data=["pairs.jsonl"], beta=BETA, **flags))
    padding = torch.zeros(documents.shape, dtype=torch.bool)
    sample = torch.tensor([[0, 0, 1, 1]])
    rows = Rows(None, documents, sample, num_tokens=sum(NUM_TOKENS), padding=padding)  # type: ignore[arg-type]
    loss, num_pairs, _ = dpo._loss_func(run, None, rows)((policy, reference))  # type: ignore[arg-type]
    assert num_pairs.item() == 2
    return loss


def margins(per_token: bool) -> torch.Tensor:
    documents, policy, reference = row()
    of_document = sums(policy, documents) - sums(reference, documents)
    if per_token:
        of_document = of_document / torch.tensor(NUM_TOKENS).view(2, 2)
    return of_document[:, 0] - of_document[:, 1]


def test_sigmoid() -> None:
    torch.testing.assert_close(loss_of(), -F.logsigmoid(BETA * margins(per_token=False)).sum())


def test_label_smoothing() -> None:
    margin = BETA * margins(per_token=False)
    expected = -(0.9 * F.logsigmoid(margin) + 0.1 * F.logsigmoid(-margin)).sum()
    torch.testing.assert_close(loss_of(dpo_label_smoothing=0.1), expected)


def test_ipo_is_on_means_per_token() -> None:
    """Azar et al. 2023, Eq. 17."""
    expected = ((margins(per_token=True) - 1 / (2 * BETA)) ** 2).sum()
    torch.testing.assert_close(loss_of(loss="ipo"), expected)


@pytest.mark.parametrize("coefficient", [0.5, 2.0])
def test_sft_coefficient_weighs_the_chosen_responses_mean_loss(coefficient: float) -> None:
    documents, policy, _ = row()
    chosen = sums(policy, documents)[:, 0] / torch.tensor([NUM_TOKENS[0], NUM_TOKENS[2]])
    torch.testing.assert_close(loss_of(sft_coefficient=coefficient), loss_of() - coefficient * chosen.sum())
