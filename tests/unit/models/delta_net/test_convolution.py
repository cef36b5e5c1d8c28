"""The causal convolution beside sums written out, with and without documents; and where documents start."""

import torch

from megatron_mixcpt.models.delta_net.convolution import causal_convolution
from megatron_mixcpt.models.delta_net.documents import document_starts
from megatron_mixcpt.models.query_blocks import MASKED_SCORE

X = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(1))


def expected(starts: list[int]) -> torch.Tensor:
    """Token t sees the last of the four weights at itself, and no token before its document."""
    result = torch.zeros_like(X)
    for token, start in enumerate(starts):
        for seen in range(max(token - 3, start), token + 1):
            result[:, token] += X[:, seen] * WEIGHT[:, 0, 3 - (token - seen)]
    return result


def test_one_document() -> None:
    torch.testing.assert_close(causal_convolution(X, WEIGHT), expected([0] * 9))


def test_no_token_sees_another_document() -> None:
    starts = [0, 0, 0, 3, 4, 4, 4, 4, 4]
    torch.testing.assert_close(causal_convolution(X, WEIGHT, torch.tensor([starts])), expected(starts))


def test_documents_are_read_from_either_kind_of_mask() -> None:
    """Documents of 2, 1 and 3 tokens beside one of 6."""
    starts = torch.tensor([[0, 0, 2, 3, 3, 3], [0] * 6])
    position = torch.arange(6)
    hidden = (position > position[:, None]) | (position < starts[:, :, None])
    scores = torch.zeros(2, 1, 6, 6).masked_fill(hidden[:, None], MASKED_SCORE)
    for mask in (hidden[:, None], scores):
        torch.testing.assert_close(document_starts(mask, None), starts)
    assert document_starts(None, None) is None
