"""The Mix-CPT loss, its vocabulary sharded over real process groups, against the dense reference on whole logits."""

import pytest
import torch
import torch.distributed as dist

from megatron_mixcpt.losses.lssd import mixcpt_loss, vocab_parallel_mixcpt_loss
from megatron_mixcpt.testing import run_distributed
from tests.unit.losses.dense_reference import ExpectedLoss, expected_mixcpt_loss
from tests.unit.losses.test_lssd import ALPHA, GRADIENT_TOLERANCE, TOLERANCE, objective, run, sample

COLLECTIVES = [
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "all_to_all_single",
    "broadcast",
    "reduce",
    "reduce_scatter_tensor",
    "send",
]


def pad(logits: torch.Tensor, width: int, fill: float) -> torch.Tensor:
    """Logits ``[tokens, vocab]`` with columns of ``fill`` appended up to ``width``."""
    return torch.nn.functional.pad(logits, (0, width - logits.size(1)), value=fill)


def check_shards(student, teacher, labels, mask, columns: int, expected: ExpectedLoss) -> None:
    """On every rank: this rank's columns of padded logits give the expected losses and its part of the gradient."""
    for dtype in (torch.float32, torch.bfloat16):
        check_shard(student, teacher, labels, mask, columns, dtype, expected)


def check_shard(student, teacher, labels, mask, columns: int, dtype: torch.dtype, expected: ExpectedLoss) -> None:
    group, rank = dist.group.WORLD, dist.get_rank()
    vocab_size, width = student.size(1), columns * dist.get_world_size()
    mine = slice(rank * columns, (rank + 1) * columns)
    expected_entropy = torch.distributions.Categorical(logits=teacher.double()).entropy()
    shard = pad(student, width, 1e4)[:, mine].to(dtype).contiguous().requires_grad_()
    teacher = pad(teacher, width, float("nan"))[:, mine].to(dtype).contiguous()
    result = mixcpt_loss(shard, teacher, labels, objective(teacher_entropy=True), tp_group=group, vocab_size=vocab_size)
    (gradient,) = torch.autograd.grad((result.loss * mask).sum(), shard)
    torch.testing.assert_close(result.teacher_entropy.double(), expected_entropy, **TOLERANCE)
    for name in ("loss", "ntp", "lssd", "teacher_top", "student_top"):
        torch.testing.assert_close(getattr(result, name).double(), getattr(expected, name), **TOLERANCE, msg=name)
    assert torch.equal(result.swapped, expected.swapped) and torch.equal(result.agreed, expected.agreed)
    expected_gradient = pad(expected.gradient, width, 0.0)[:, mine]
    rounding = {torch.float32: GRADIENT_TOLERANCE, torch.bfloat16: {"rtol": 2**-8, "atol": 5e-7}}[dtype]
    torch.testing.assert_close(gradient.double(), expected_gradient, **rounding)
    true_columns = max(0, min(columns, vocab_size - rank * columns))
    assert torch.equal(gradient[:, true_columns:], torch.zeros_like(gradient[:, true_columns:]))
    assert torch.equal(gradient[mask == 0], torch.zeros_like(gradient[mask == 0]))


@pytest.mark.parametrize(
    ("world_size", "columns"),
    [
        (2, 75),  # no padding
        (2, 100),  # the last rank pads half of its columns
        (3, 60),
        (4, 50),  # the last rank holds padding alone
    ],
)
def test_shards_equal_the_dense_reference(world_size: int, columns: int) -> None:
    student, teacher, labels = sample(24, 150)
    # Numbers that bfloat16 holds exactly: one expected value for both dtypes.
    student, teacher = student.bfloat16().float(), teacher.bfloat16().float()
    # Ties of the teacher's top logit within a rank and across ranks, with the label on either side of them.
    teacher[:6, 30], teacher[:6, 31], teacher[:6, 140] = 20.0, 20.0, 20.0
    labels[:3], labels[3:6] = 30, 140
    mask = (torch.arange(24) % 5 != 0).float()
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA, grad_output=mask)
    run_distributed(check_shards, world_size, student, teacher, labels, mask, columns, expected)


def check_collectives(num_tokens: int) -> None:
    """On every rank: one all-gather of 36 bytes per token forward and no collective backward."""
    calls: list[tuple[str, int]] = []

    def counted(name: str, function):
        def call(output, *inputs, **options):
            tensor = next((part for part in inputs if isinstance(part, torch.Tensor)), output)
            calls.append((name, tensor.nbytes))
            return function(output, *inputs, **options)

        return call

    for name in COLLECTIVES:
        setattr(dist, name, counted(name, getattr(dist, name)))
    generator = torch.Generator().manual_seed(dist.get_rank())
    student, teacher = torch.randn(2, num_tokens, 40, generator=generator).unbind(0)
    student.requires_grad_()
    labels = torch.arange(num_tokens)
    loss = vocab_parallel_mixcpt_loss(student, teacher, labels, alpha=ALPHA, tp_group=dist.group.WORLD).loss
    assert calls == [("all_gather_into_tensor", 36 * num_tokens)], calls
    loss.sum().backward()
    assert len(calls) == 1, calls
    vocab_parallel_mixcpt_loss(student, None, labels, alpha=ALPHA, tp_group=dist.group.WORLD).loss.sum().backward()
    assert calls[1:] == [("all_gather_into_tensor", 12 * num_tokens)], calls


def test_one_collective_forward_and_none_backward() -> None:
    run_distributed(check_collectives, 2, 16)


def check_equal_models() -> None:
    """On every rank: a right student equal to its teacher has no divergence and no gradient at all."""
    logits = torch.randn(16, 90, generator=torch.Generator().manual_seed(0)) * 3
    labels = logits.argmax(-1)
    shard = logits.chunk(3, dim=-1)[dist.get_rank()].contiguous()
    student = shard.clone().requires_grad_()
    result = vocab_parallel_mixcpt_loss(student, shard, labels, alpha=0.0, tp_group=dist.group.WORLD)
    (gradient,) = torch.autograd.grad(result.loss.sum(), student)
    assert torch.equal(result.lssd, torch.zeros(16)) and not gradient.any() and not result.swapped.any()


def check_against_one_rank(student, teacher, labels, expected_loss, expected_gradient) -> None:
    """On every rank: half of the vocabulary on each of two ranks gives what all of it on one rank gives."""
    mine = [logits.chunk(2, dim=-1)[dist.get_rank()].contiguous() for logits in (student, teacher)]
    shard = mine[0].requires_grad_()
    result = vocab_parallel_mixcpt_loss(shard, mine[1], labels, alpha=ALPHA, tp_group=dist.group.WORLD)
    (gradient,) = torch.autograd.grad(result.loss.sum(), shard)
    # Of losses of about 10, two units in the last place.
    torch.testing.assert_close(result.loss, expected_loss, rtol=2.4e-7, atol=0.0)
    expected_gradient = expected_gradient.chunk(2, dim=-1)[dist.get_rank()]
    torch.testing.assert_close(gradient, expected_gradient, rtol=0.0, atol=1e-7)


def test_two_ranks_equal_one() -> None:
    student, teacher, labels = sample(16, 8192)
    result, gradient = run(student, teacher, labels)
    run_distributed(check_against_one_rank, 2, student, teacher, labels, result.loss.detach(), gradient)


def check_forward_divergence(student, teacher, labels, kind: dict, expected: ExpectedLoss) -> None:
    """On every rank: the forward divergence at a temperature, with a rank that holds padding alone."""
    mine = slice(dist.get_rank() * 50, (dist.get_rank() + 1) * 50)
    shard = pad(student, 150, 0.0)[:, mine].contiguous().requires_grad_()
    teacher = pad(teacher, 150, 0.0)[:, mine].contiguous()
    result = mixcpt_loss(shard, teacher, labels, objective(**kind), tp_group=dist.group.WORLD, vocab_size=90)
    (gradient,) = torch.autograd.grad(result.loss.sum(), shard)
    # The divergence, and its rounding, is multiplied by temperature^2.
    torch.testing.assert_close(result.loss.double(), expected.loss, rtol=0.0, atol=4e-5)
    torch.testing.assert_close(gradient.double(), pad(expected.gradient, 150, 0.0)[:, mine], **GRADIENT_TOLERANCE)


def test_forward_divergence_at_a_temperature_across_ranks() -> None:
    student, teacher, labels = sample(24, 90)
    kind = {"divergence": "forward", "temperature": 2.0}
    expected = expected_mixcpt_loss(student, teacher, labels, ALPHA, **kind)
    run_distributed(check_forward_divergence, 3, student, teacher, labels, kind, expected)


def test_no_divergence_between_equal_models_across_ranks() -> None:
    run_distributed(check_equal_models, 3)


def check_high_indices(columns: int) -> None:
    """On every rank: equal top logits at indices that float32 cannot tell apart are told apart."""
    student, teacher = torch.zeros(2, 1, columns).unbind(0)
    if dist.get_rank() == 1:
        teacher[0, -1] = 5.0
    top = 2 * columns - 1
    for label, is_swapped in ((top, False), (top - 1, True)):
        result = vocab_parallel_mixcpt_loss(
            student, teacher, torch.tensor([label]), alpha=ALPHA, tp_group=dist.group.WORLD
        )
        assert result.swapped.item() == is_swapped


def test_indices_above_two_to_the_24_are_exact() -> None:
    run_distributed(check_high_indices, 2, 2**23 + 2**10)
