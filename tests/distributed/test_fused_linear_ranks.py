"""The fused linear loss over tensor parallel ranks, with the sequence split or not, against the unfused loss on one."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_mixcpt.testing import run_distributed
from tests.unit.losses.test_fused_linear import TOLERANCE, expected_results, fused, sample


def check_ranks(part: dict[str, Tensor], expected: tuple, sequence_parallel: bool) -> None:
    """On every rank: its rows of both weights and its part of the sequence give the expected losses and gradients."""
    rank, size = dist.get_rank(), dist.get_world_size()
    expected_loss, expected_sum, (expected_hidden, expected_weight) = expected
    mine = {name: tensor.chunk(size)[rank] if "weight" in name else tensor for name, tensor in part.items()}
    if sequence_parallel:
        mine |= {name: part[name].chunk(size)[rank] for name in ("hidden", "teacher_hidden")}
        expected_hidden = expected_hidden.chunk(size)[rank]
    hidden, weight = mine["hidden"].clone().requires_grad_(), mine["weight"].clone().requires_grad_()
    result = fused(
        mine,
        hidden,
        weight,
        vocab_size=57,
        tp_group=dist.group.WORLD,
        sequence_parallel=sequence_parallel,
        chunk_tokens=16,
    )
    (result.loss_sum * 3).backward()
    torch.testing.assert_close(result.tokens.loss, expected_loss, **TOLERANCE)
    torch.testing.assert_close(result.loss_sum.detach(), expected_sum, **TOLERANCE)
    torch.testing.assert_close(hidden.grad, expected_hidden, **TOLERANCE)
    torch.testing.assert_close(weight.grad, expected_weight.chunk(size)[rank], **TOLERANCE)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_ranks_equal_the_unfused_loss(sequence_parallel: bool) -> None:
    part = sample()
    result, loss_sum, gradients = expected_results(part, True, vocab_size=57)
    run_distributed(check_ranks, 2, part, (result.loss.detach(), loss_sum.detach(), gradients), sequence_parallel)
