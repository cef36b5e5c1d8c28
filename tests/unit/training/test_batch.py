"""Dense masks from document boundaries, against a mask written down token by token."""

import torch

from megatron_mixcpt.testing import run_distributed


def test_document_mask() -> None:
    run_distributed(check_document_mask, 1, cpu_emulation=True)


def check_document_mask() -> None:
    from megatron_mixcpt.training.batch import document_mask

    seq_length = 7
    # Rows as the engine pads them: documents' first positions, then the sequence length as often as it takes.
    boundaries = torch.tensor([[0, 3, 4, 7, 7], [0, 7, 7, 7, 7]], dtype=torch.int32)
    documents = [[0, 0, 0, 1, 2, 2, 2], [0] * 7]
    expected = torch.tensor(
        [
            [[key > query or row[key] != row[query] for key in range(seq_length)] for query in range(seq_length)]
            for row in documents
        ]
    )
    assert torch.equal(document_mask(boundaries, seq_length), expected.unsqueeze(1))
